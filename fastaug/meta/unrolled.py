"""K-step unrolling: a window of K training updates, differentiated together and truncated at its start.

The updates are those of the training itself: a window keeps the weights and the optimizer's state from before its first
one and what each of them trained on, and replays them on the graph of what is learned (the K inner steps of
smart_augmentation). Nothing of a window is left after its meta step, so memory does not grow with their number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastaug.augment.learned_effects import Part
from fastaug.batch import Batch
from fastaug.hypergrad.engines.unroll import Window, present_settings
from fastaug.hypergrad.problem import Samples
from fastaug.meta.step import ROW, MetaStep, samples_of


class TakenUpdate(NamedTuple):
    """An update of a window: what it trained on, and with which settings of the optimizer's groups."""

    batch: Batch
    step: int
    seed: int
    settings: list[dict[str, Any]]


class UnrolledSteps(MetaStep):
    """The K-step meta step: windows of meta.steps updates, from meta.start_epochs on one every meta.every updates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._window: Window | None = None
        self._updates: list[TakenUpdate] = []
        self._parts: list[Part] = []  # of the updates, once the window is differentiated
        self._settings: list[dict[str, Any]] = []  # of the coming update

    def place(self, step: int) -> int | None:
        """Which update of a window `step` is, from 0; None between windows."""
        place = (step - self.first_step) % self.meta.every
        last = step - place + self.meta.steps - 1
        return place if self.learns(step) and self.learns(last) and place < self.meta.steps else None

    def acts(self, step: int) -> bool:
        """Whether `step` belongs to a window: there is work in every update of one."""
        return self.place(step) is not None

    def before_update(self, step: int, norm: Tensor) -> None:  # noqa: ARG002
        """Begins a window before its first update."""
        place = self.place(step)
        if place == 0:
            self._window, self._updates = Window(self.optimizer, self.network.named_parameters()), []
        if place is not None:
            self._settings = present_settings(self.optimizer)

    def learn_from(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:  # noqa: ARG002
        """Keeps what the update trained on; after the last one of a window comes the meta step."""
        place = self.place(step)
        if place is None or self._window is None:
            return
        if self.chosen(batch, step) is None:
            self._window, self._updates = None, []  # this update cannot be repeated: the next window begins anew
            return
        update = TakenUpdate(batch, step, seed, self._settings)
        samples, settings = self._replayed(len(self._updates), update)
        self._window.add(samples, seed=seed, total=self.training.update_size(step), settings=settings)
        self._updates.append(update)
        if len(self._updates) == self.meta.steps:
            self._take(self._window, step)
            self._window, self._updates, self._parts = None, [], []

    def _replayed(
        self, k: int, update: TakenUpdate
    ) -> tuple[Callable[[], Samples], Callable[[], list[dict[str, Any]]]]:
        """Samples and settings of update `k` of the window, once asked for, on the graph of what is learned."""
        return lambda: samples_of(self._parts[k]), lambda: self.learned.rates_on_graph(update.settings)

    def _take(self, window: Window, step: int) -> None:
        """The meta step at the end of a window."""
        self.renew(step)
        epochs = [update.step // self.training.steps_per_epoch for update in self._updates]
        self._parts = [
            self.augment.part(update.batch, epoch, torch.arange(len(update.batch.ids)))
            for update, epoch in zip(self._updates, epochs, strict=True)
        ]
        rows = {_row(name, k): row for k, part in enumerate(self._parts) for name, row in part.rows.items()}
        gradients = window.gradients(
            self.network,
            self.training.losses,
            self.validation.value(),
            self.learned.shared() | rows,
            max_norm=self.training.recipe.optim.clip_grad,
            autocast=self.accelerator.autocast,
        )
        ids, joined = self._joined(gradients)
        self.move({name: gradients[name] for name in self.learned.shared()} | joined, ids, step)

    def state_dict(self) -> dict[str, Any]:
        """With the window that a checkpoint falls into: its start, and the batches of its updates so far."""
        kept = [{**update._asdict(), "batch": tuple(update.batch)} for update in self._updates]
        window = None if self._window is None else {"start": self._window.state_dict(), "updates": kept}
        return super().state_dict() | {"window": window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`, in the middle of a window too."""
        super().load_state_dict(state)
        self._window, self._updates = None, []
        if (kept := state.get("window")) is not None:
            device = self.accelerator.device
            for update in kept["updates"]:
                images, labels, *ids = update["batch"]
                batch = Batch(images.to(device), labels.to(device), *ids)
                self._updates.append(TakenUpdate(**(update | {"batch": batch})))
            replayed = [self._replayed(k, update) for k, update in enumerate(self._updates)]
            self._window = Window.from_state(
                self.optimizer,
                self.network.named_parameters(),
                kept["start"],
                [samples for samples, _ in replayed],
                [settings for _, settings in replayed],
            )

    def _joined(self, gradients: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Ids of the window's images, each once, and the hypergradient in their rows: summed over its updates."""
        ids, position = torch.unique(torch.cat([part.ids for part in self._parts]), return_inverse=True)
        joined = {}
        for name in self.learned.tables():
            rows = torch.cat([gradients[_row(name, k)] for k in range(len(self._parts))])
            total = rows.new_zeros(len(ids), *rows.shape[1:])
            joined[ROW + name] = total.index_add_(0, position.to(rows.device), rows)
        return ids, joined


def _row(table: str, k: int) -> str:
    """The name of a table's rows in update k of a window."""
    return f"{ROW}{table}, update {k}"

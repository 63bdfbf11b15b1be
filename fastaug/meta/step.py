"""The meta step: how augmentation, weights and labels learn from the meta split while the network trains.

It acts at three moments of every update: before the forward pass of a micro-batch, before the optimizer's step and
after it. When it is due, v, the gradient of the validation loss, is pulled back through the update to everything that
shaped it, and a meta-optimizer moves that. How is a strategy of its own:

    one_step.py   after the update w' = U(w, g), on a part of the batch: the exact hypergradient of one step
    in_pass.py    in the training pass itself: the engine `fused`, and instant weights and labels
    unrolled.py   K updates differentiated together

Nothing here touches the network, its buffers, gradients, optimizer state or any generator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastaug.augment.learned_effects import Augmentation, Part
from fastaug.batch import Batch
from fastaug.distributed import any_process, gathered, over_processes
from fastaug.hypergrad.optimizer_jacobians.recorded_step import rule_of
from fastaug.hypergrad.problem import Losses, Problem, Samples, Weights
from fastaug.hypergrad.recording import Recording
from fastaug.meta.engine_choice import EngineChoice
from fastaug.meta.log import MetaLog, alarms, held_back_alarm
from fastaug.meta.parameters import LearnedParts
from fastaug.meta.sample_tables import StoredTable
from fastaug.meta.settling import Settling
from fastaug.meta.validation_gradient import ValidationGradient
from fastaug.recipe.schema import SMALLEST_BATCH, Meta, Recipe
from fastaug.targets import SoftTarget

# First updates without a meta step where the optimizer divides by a root D of second moments: its first step is the
# gradient's sign, whose exact derivative is 0 but where the gradient is next to nothing, and there eps alone bounds it.
# With three gradients in it, 1/D has a finite variance.
UNSETTLED = 2
ROW = "row of "  # before a table's name, where rows stand beside shared parameters


def ignored(chosen: Tensor | None, harm: Tensor) -> None:
    """Nobody wants to know of the harm of samples."""


@dataclass(frozen=True)
class Training:
    """The training that a meta step belongs to, as it sees it.

    `network`: the bare module; `model`: the network as training calls it; `average`: its moving average if that is
    validated, and `average_decay(step)` its factor in update `step`. `losses`: those of single samples.
    `update_size(step)`: images of an update over all processes; `differentiated(step)`: draws of those that a meta step
    differentiates, in the last micro-batch of each process. `views`, `one_sided`: of its losses, see `Problem`.
    `see_harm(positions, harm)` is told what a meta step found of samples of that micro-batch (all of them: None), the
    derivative of the validation loss in each one's loss weight.
    """

    recipe: Recipe
    accelerator: Accelerator
    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    average_decay: Callable[[int], float]
    losses: Losses
    steps_per_epoch: int
    update_size: Callable[[int], int]
    differentiated: Callable[[int], npt.NDArray[np.int64]]
    say: Callable[[str], None]
    views: int = 1
    one_sided: bool = False
    see_harm: Callable[[Tensor | None, Tensor], None] = ignored


class NoMetaStep:
    """The meta step of a run that learns nothing by it."""

    learned: LearnedParts | None = None

    def acts(self, step: int) -> bool:
        """Whether the meta step has any work in update `step` (from 0)."""
        return False

    def begin(self, step: int) -> None:
        """Hook before the images of update `step` (from 0) are augmented."""

    def before_forward(
        self, images: Tensor, target: SoftTarget, step: int, seed: int
    ) -> tuple[Tensor | None, SoftTarget]:
        """Hook before the forward pass of a micro-batch in update `step` (from 0), whose dropout masks `seed` draws.

        Gives the logits of the pass if it was taken here (else None), and the target to train on.
        """
        return None, target

    def before_update(self, step: int, norm: Tensor) -> None:
        """Hook between clipping and the optimizer's step; `norm` of the gradient before clipping."""

    def after_update(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:
        """Hook after the optimizer's step; `batch`, `logits` of training and `seed` are the last micro-batch's."""

    def report(self) -> tuple[list[dict[str, Any]], dict[str, float], list[str]]:
        """For the log, since the last call: a line for every meta step, the values learned, alarms. Host sync."""
        return [], {}, []

    def skipped(self) -> dict[int, str]:
        """Damaged meta images so far, by id, with the reason."""
        return {}

    def start(self) -> dict[str, Tensor]:
        """The shared parameters' values where learning began, by name; none where nothing learns."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""


class MetaStep(NoMetaStep):
    """The meta step: what all strategies share of when it is due, v, problems to differentiate, and moving values."""

    learned: LearnedParts

    def __init__(
        self, training: Training, augment: Augmentation, learned: LearnedParts, validation: ValidationGradient
    ) -> None:
        self.training, self.augment, self.learned, self.validation = training, augment, learned, validation
        self.meta, self.accelerator = training.recipe.meta, training.accelerator
        self.network, self.optimizer = training.network, training.optimizer
        head_first = round(training.recipe.model.head_first_epochs * training.steps_per_epoch)
        self.first_step = max(round(self.meta.start_epochs * training.steps_per_epoch), head_first + self.unsettled())
        self.engine = EngineChoice(training.recipe, training.say)
        self.recording = build_recording(self.meta, self.accelerator.device)
        self.meta_optimizer = build_meta_optimizer(self.meta, learned.groups())
        self.names: list[str] | None = None  # of the weights that v is in; None: all
        self.settling = Settling(training.recipe, training.steps_per_epoch)
        self.log = MetaLog()
        self._told = 0  # of the validation gradients left out
        self._start = {name: p.detach().clone() for name, p in learned.shared().items()}

    # ---- when ----

    def unsettled(self) -> int:
        """Updates at the start of the whole network's training whose derivatives mean nothing yet."""
        return UNSETTLED if rule_of(self.optimizer, self.meta.approximate).uses_gradients else 0

    def learns(self, step: int) -> bool:
        """Whether update `step` (from 0) lies in the part of training in which there are meta steps."""
        return self.first_step <= step < self.settling.begins

    def due(self, step: int) -> bool:
        """Whether a meta step belongs to update `step` (from 0)."""
        return self.learns(step) and (step - self.first_step) % self.meta.every == 0

    def acts(self, step: int) -> bool:
        """Whether the meta step has work in update `step`."""
        return self.due(step)

    def chosen(self, batch: Batch, step: int) -> Tensor | None:
        """Positions [n] of the images that a meta step differentiates, in the last micro-batch of update `step`.

        None, and so it is said in the log, where the meta step has to be left out.
        """
        found = torch.isin(batch.draws, torch.from_numpy(self.training.differentiated(step))).nonzero()[:, 0]
        few = any_process(self.accelerator, len(found) < SMALLEST_BATCH)
        if self.accelerator.optimizer_step_was_skipped or few:
            self.log.skip(step)  # the network did not learn in this update, or damage has left too few images
            return None
        return found

    def begin(self, step: int) -> None:
        """Tells what is learned whether this update is looked at."""
        self.learned.begin(looked_at=self.acts(step))

    def after_update(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:
        """Learns from the update; after the last one that does, shared values settle if meta.settle_epochs says so."""
        self.learn_from(batch, logits, step, seed)
        self.learned.begin(looked_at=False)
        self.settling.after(step, self.learned.shared())

    def learn_from(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:
        """The strategy's own work after update `step`; arguments as in `after_update`."""

    # ---- what is differentiated ----

    def renew(self, step: int) -> None:
        """Renews v if the meta step of update `step` does."""
        number = (step - self.first_step) // self.meta.every
        # Whichever comes first: the meta step of `number` 0 may have been left out.
        if self.validation.renewals == 0 or number % self.meta.renew == 0:
            validated = self.network if self.training.average is None else self.training.average
            self.validation.renew(self.weights(validated), self.names)

    def weights(self, network: nn.Module) -> Weights:
        """The weights of `network` by name, those that are trained."""
        trained = {name for name, weight in self.network.named_parameters() if weight.requires_grad}
        return {name: weight.detach() for name, weight in network.named_parameters() if name in trained}

    def problem(self, weights: Weights, samples: Samples, seed: int) -> Problem:
        """The training loss of `samples` at `weights`, as engines take it."""
        training = self.training
        count = len(samples.images) // training.views
        if self.accelerator.num_processes > 1:
            count = int(over_processes(torch.tensor(count, device=samples.images.device)).item())
        return Problem(
            network=self.network,
            weights=weights,
            samples=samples,
            losses=training.losses,
            total=count,
            seed=seed,
            autocast=self.accelerator.autocast,
            views=training.views,
            one_sided=training.one_sided,
        )

    def leaves(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """What acts on the training loss, by name: shared parameters, and the rows of tables."""
        return self.learned.shared(on_batch=True) | {ROW + name: row for name, row in rows.items()}

    # ---- how it moves ----

    def move(self, gradients: dict[str, Tensor], ids: Tensor, step: int) -> None:
        """One step of the meta-optimizer and of the tables' rows of `ids`, against the hypergradient by name.

        Shared parameters: summed over all processes. Rows: this process's, as `leaves` named them.
        """
        rows = {name.removeprefix(ROW): g for name, g in gradients.items() if name.startswith(ROW)}
        parameters = self.learned.shared()
        shared = {name: gradients.get(name, torch.zeros_like(p)) for name, p in parameters.items()}
        first = self.optimizer.param_groups[0]
        self.log.add(step, shared, rows, rate=float(first["lr"]) / first.get("lr_scale", 1.0))
        steps = self._with_penalty(shared, parameters)
        if self.meta.anneal:
            self._anneal()
        if steps and all(bool(g.isfinite().all()) for g in steps.values()):  # host sync
            assert self.meta_optimizer is not None
            for name, parameter in parameters.items():
                parameter.grad = steps[name]
            self.meta_optimizer.step()
            self.meta_optimizer.zero_grad()
        for name, table in self.learned.tables().items():
            if name in rows:
                table.move(*gathered(self.accelerator, ids, rows[name]))

    def _anneal(self) -> None:
        """Sets all rates of what is learned to the share of their own that the schedule has of the network's peak."""
        share = self.learned.scheduled_rate / self.training.recipe.optim.lr
        groups = [] if self.meta_optimizer is None else self.meta_optimizer.param_groups
        for group, given in zip(groups, self.learned.groups(), strict=True):
            group["lr"] = share * given["lr"]
        for table in self.learned.tables().values():
            if isinstance(table, StoredTable):
                table.update.share = share

    def _with_penalty(self, shared: dict[str, Tensor], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """The hypergradient in the shared parameters plus that of meta.regulariser, times its weight."""
        kind, weight = self.meta.regulariser, self.meta.regulariser_weight
        if kind == "none" or not shared:
            return shared
        if kind == "start":
            return {
                name: g + 2 * weight * (parameters[name].detach() - self._start[name]) for name, g in shared.items()
            }
        with torch.enable_grad():
            penalty = weight * self.learned.penalty(kind)
            slopes = torch.autograd.grad(penalty, list(parameters.values()), materialize_grads=True)
        return {name: g + slope for (name, g), slope in zip(shared.items(), slopes, strict=True)}

    # ---- what is told and kept ----

    def report(self) -> tuple[list[dict[str, Any]], dict[str, float], list[str]]:
        """A line for every meta step since the last call, the values learned, alarms; host sync."""
        lines = self.log.read()
        if not lines:
            return [], {}, []
        summaries = self.learned.summaries()
        values = {name: value for summary in summaries.values() for name, value in summary.items()}
        new, self._told = self.validation.left_out - self._told, self.validation.left_out
        raised = alarms(self.learned, summaries, self.log, new)
        if self.meta.optimizer != "sgd":
            raised += held_back_alarm(self.log)
        return lines, values, raised

    def skipped(self) -> dict[int, str]:
        """Damaged meta images so far, by id, with the reason."""
        return self.validation.skipped

    def start(self) -> dict[str, Tensor]:
        """The shared parameters' values where learning began, by name."""
        each = self.learned.each().items()
        unlearned = {f"{name}.{own}": value for name, part in each for own, value in part.start().items()}
        return unlearned | self._start

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs."""
        return {
            "learned": self.learned.state_dict(),
            "start": self._start,
            "optimizer": None if self.meta_optimizer is None else self.meta_optimizer.state_dict(),
            "validation": self.validation.state_dict(),
            "settling": self.settling.state_dict(),
            "engine": self.engine.chosen,
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.learned.load_state_dict(state["learned"])
        if self.meta_optimizer is not None:
            self.meta_optimizer.load_state_dict(state["optimizer"])
        start = state.get("start", self._start)  # 0.1.0 had no regulariser and kept none
        self._start = {name: start[name].to(p.device) for name, p in self.learned.shared().items()}
        self.validation.load_state_dict(state["validation"])
        if "settling" in state:  # older checkpoints have none
            self.settling.load_state_dict(state["settling"], self.learned.shared())
        self.engine.chosen = state["engine"]
        self.log.load_state_dict(state["log"])
        self._told = self.validation.left_out


def build_recording(meta: Meta, device: torch.device) -> Recording | None:
    """What records a computation of the meta step, where the recipe wants it; None on a CPU."""
    return Recording() if meta.cuda_graphs and device.type == "cuda" else None


def build_meta_optimizer(meta: Meta, groups: list[dict[str, Any]]) -> torch.optim.Optimizer | None:
    """The optimizer of the shared parameters, each group with its own learning rate; None where there are none."""
    if not groups:
        return None
    if meta.optimizer == "adam":
        return torch.optim.Adam(groups, betas=(0.9, 0.99), weight_decay=meta.weight_decay)
    kind = torch.optim.SGD if meta.optimizer == "sgd" else torch.optim.RMSprop
    return kind(groups, momentum=meta.momentum, weight_decay=meta.weight_decay)


def samples_of(part: Part) -> Samples:
    """The samples of a part of a batch with its images, as engines take them."""
    assert part.images is not None
    return Samples(part.images, part.target, part.log_probability)

"""The log of the meta step: norm and direction of each hypergradient, values learned, and alarms for known failures."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastaug.meta.learned_part import SATURATED
from fastaug.meta.parameters import LearnedParts

_OF_A_LINE = ("cosine_with_last", "without_weight")
# What is left of a gradient in the root of Adam's or RMSprop's mean of squares (factor .99): at once, and a step later.
LEFT, FADING = 0.1, 0.995
HELD_BACK = 10.0  # steps shorter than that by the memory of one gradient are an alarm
Figures = dict[str, Tensor]


class MetaLog:
    """Figures of the meta steps since the last reading, kept on their devices until then."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[Figures]]] = []
        self._last: Tensor | None = None
        self._largest = self._recent = 0.0  # what a meta-optimizer remembers of the largest gradient; recent ones' mean
        self.skipped = 0  # meta steps left out, mostly because their hypergradient was not finite
        self.just_skipped = 0  # those of them among the lines last read
        self.without_weight = 0.0  # share of samples with instant weight 0, mean of the lines last read

    def add(
        self,
        step: int,
        shared: Mapping[str, Tensor],
        samples: Mapping[str, Tensor],
        weights: Tensor | None = None,
        *,
        rate: float = 1.0,
    ) -> None:
        """The hypergradient after update `step` (from 0) in shared parameters and in numbers of single samples.

        `weights` [n]: what instant weights came of it. Gradients that are not finite are left out, and said to be: any
        number of the shared ones, all of the samples. `rate`: the update's learning rate, which the hypergradient is
        proportional to.
        """
        figures = []
        if shared:
            flat = _flat(shared)
            cosine = (
                flat.new_tensor(torch.nan)
                if self._last is None
                else F.cosine_similarity(flat, self._last.to(flat.device), dim=0)
            )
            self._last = flat
            size = _size(flat)
            lost = ~flat.isfinite().all()
            figures.append({"size": size, "lost": lost, "cosine_with_last": cosine, "at_rate_1": size / (rate or 1.0)})
        if samples:
            flat = _flat(samples)
            figures.append({"size": _size(flat), "lost": ~flat.isfinite().any()})
        if weights is not None:
            figures.append({"without_weight": (weights == 0).float().mean()})
        self._pending.append((step, figures))

    def skip(self, step: int) -> None:
        """A meta step that belongs to update `step` and was left out."""
        self._pending.append((step, [{"lost": torch.tensor(True)}]))

    def read(self) -> list[dict[str, Any]]:
        """A line for every meta step since the last call; the host sync of a log line."""
        before = self.skipped
        lines = [self._line(step, figures) for step, figures in self._pending]
        self.just_skipped = self.skipped - before
        if shares := [line["without_weight"] for line in lines if "without_weight" in line]:
            self.without_weight = sum(shares) / len(shares)
        self._pending = []
        return lines

    def _line(self, step: int, pending: list[Figures]) -> dict[str, Any]:
        figures = [{name: value.item() for name, value in kind.items()} for kind in pending]
        size = math.hypot(*(kind.get("size", 0.0) for kind in figures))
        line = {"event": "meta", "step": step + 1, "hypergradient": size}
        if any(kind["lost"] for kind in figures if "lost" in kind):
            self.skipped += 1
            line["skipped"] = True
        for kind in figures:
            if "at_rate_1" in kind:
                self._largest = max(FADING * self._largest, LEFT * kind["at_rate_1"])
                self._recent += 0.1 * (kind["at_rate_1"] - self._recent)
        rest = {name: value for kind in figures for name, value in kind.items() if name in _OF_A_LINE}
        return line | {name: value for name, value in rest.items() if not math.isnan(value)}

    def held_back(self) -> float:
        """How many times one large hypergradient makes the steps of a meta-optimizer shorter that remembers squares."""
        return self._largest / self._recent if self._recent > 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the lines were read before."""
        sizes = {"largest": self._largest, "recent": self._recent}
        return {"last": self._last, "skipped": self.skipped, "sizes": sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self._last, self.skipped, self._pending = state["last"], state["skipped"], []
        sizes = state.get("sizes", {"largest": 0.0, "recent": 0.0})  # 0.1.0 had none
        self._largest, self._recent = sizes["largest"], sizes["recent"]


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All numbers in one row, on the device of the first tensor."""
    device = next(iter(gradients.values())).device
    return torch.cat([g.detach().flatten().float().to(device) for g in gradients.values()])


def _size(flat: Tensor) -> Tensor:
    """Norm of the finite numbers in `flat`."""
    return torch.where(flat.isfinite(), flat, 0).norm()


def alarms(learned: LearnedParts, summaries: dict[str, dict[str, float]], log: MetaLog, left_out: int) -> list[str]:
    """What looks wrong in the values learned, each with what to try; of steps left out only those not told before.

    `left_out`: validation gradients that were not finite since the last line.
    """
    raised = [alarm for name, part in learned.each().items() for alarm in part.alarms(summaries[name])]
    if log.without_weight > SATURATED:
        raised.append(
            f"{log.without_weight:.0%} of the samples got the instant weight 0: training and meta split contradict "
            "each other, or the network fits the training images no better than chance; lower optim.lr"
        )
    if log.just_skipped:
        raised.append(
            f"{log.just_skipped} meta steps were left out ({log.skipped} so far): their hypergradient or update was "
            "not finite (lower optim.lr), or a process had fewer than two of their images: damaged ones, or in a short "
            "last update of an epoch, which train.drop_last leaves out"
        )
    if left_out:
        raised.append(
            f"{left_out} validation gradients were left out: they were not finite (lower optim.lr), or no image of "
            "their meta batch could be decoded"
        )
    return raised


def held_back_alarm(log: MetaLog) -> list[str]:
    """Where the meta-optimizer remembers squares: one early gradient that holds all later steps back."""
    if log.held_back() <= HELD_BACK:
        return []
    return [
        f"a hypergradient was so large that the meta-optimizer's steps are {log.held_back():.0f} times shorter now, "
        "until its memory fades; raise meta.start_epochs, or set meta.optimizer to sgd"
    ]

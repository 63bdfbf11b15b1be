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
Figures = dict[str, Tensor]


class MetaLog:
    """Figures of the meta steps since the last reading, kept on their devices until then."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, list[Figures]]] = []
        self._last: Tensor | None = None
        self.skipped = 0  # meta steps left out because their hypergradient was not finite
        self.without_weight = 0.0  # share of samples with instant weight 0, mean of the lines last read

    def add(
        self,
        step: int,
        shared: Mapping[str, Tensor],
        samples: Mapping[str, Tensor],
        weights: Tensor | None = None,
    ) -> None:
        """The hypergradient after update `step` (from 0) in shared parameters and in numbers of single samples.

        `weights` [n]: what instant weights came of it. Gradients that are not finite are left out, and said to be: any
        number of the shared ones, all of the samples.
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
            figures.append({"size": _size(flat), "lost": ~flat.isfinite().all(), "cosine_with_last": cosine})
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
        lines = [self._line(step, figures) for step, figures in self._pending]
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
        rest = {name: value for kind in figures for name, value in kind.items() if name in _OF_A_LINE}
        return line | {name: value for name, value in rest.items() if not math.isnan(value)}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the lines were read before."""
        return {"last": self._last, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self._last, self.skipped, self._pending = state["last"], state["skipped"], []


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """All numbers in one row, on the device of the first tensor."""
    device = next(iter(gradients.values())).device
    return torch.cat([g.detach().flatten().float().to(device) for g in gradients.values()])


def _size(flat: Tensor) -> Tensor:
    """Norm of the finite numbers in `flat`."""
    return torch.where(flat.isfinite(), flat, 0).norm()


def alarms(learned: LearnedParts, summaries: dict[str, dict[str, float]], log: MetaLog, left_out: int) -> list[str]:
    """What looks wrong in the values learned, each with what to try; `left_out`: validation gradients not finite."""
    raised = [alarm for name, part in learned.each().items() for alarm in part.alarms(summaries[name])]
    if log.without_weight > SATURATED:
        raised.append(
            f"{log.without_weight:.0%} of the samples got the instant weight 0: training and meta split contradict "
            "each other, or the network fits the training images no better than chance; lower optim.lr"
        )
    if log.skipped:
        raised.append(f"{log.skipped} meta steps were left out: their hypergradient was not finite; lower optim.lr")
    if left_out:
        raised.append(f"{left_out} validation gradients were left out: they were not finite; lower optim.lr")
    return raised

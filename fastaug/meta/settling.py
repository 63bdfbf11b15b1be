"""The end of learning: in the last epochs of a run nothing learns, and shared values are the average of those before.

A meta-optimizer's values wander around where the hypergradient is 0, as its steps do not shrink with it; their average
lies nearer (Polyak and Juditsky 1992). The network gets these epochs to train with what is exported.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastaug.recipe.schema import Recipe


class Settling:
    """Averages shared values over meta.settle_epochs of training, which then act as that for as many, the last ones."""

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.span = round(recipe.meta.settle_epochs * steps_per_epoch)  # updates of each of the two stretches; 0: none
        # The first update in which nothing learns; none without settling: profiles go beyond the end of a run.
        self.begins = recipe.train.epochs * steps_per_epoch - self.span if self.span else math.inf
        self._average: dict[str, Tensor] = {}
        self._count = 0

    @torch.no_grad()
    def after(self, step: int, shared: Mapping[str, Tensor]) -> None:
        """Told of the values after update `step` (from 0); sets them to their average after the last that learns."""
        if not self.begins - self.span <= step < self.begins:
            return
        self._count += 1
        for name, value in shared.items():
            self._average.setdefault(name, torch.zeros_like(value)).lerp_(value, 1 / self._count)
        if step == self.begins - 1:
            for name, value in shared.items():
                value.copy_(self._average[name])

    def state_dict(self) -> dict[str, Any]:
        """The average so far."""
        return {"average": self._average, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any], shared: Mapping[str, Tensor]) -> None:
        """Continues from `state_dict`."""
        self._average = {name: value.to(shared[name].device, copy=True) for name, value in state["average"].items()}
        self._count = state["count"]

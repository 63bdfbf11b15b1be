"""Learned parts that act with the values they have, without a meta step: meta.frozen and meta.reuse."""

from typing import Any

import torch

from fastaug.errors import RecipeError
from fastaug.meta.parameters import LearnedParts
from fastaug.meta.step import NoMetaStep


class FrozenParts(NoMetaStep):
    """Learned parts of a run that learns nothing: no gradient, no optimizer, no validation images."""

    learned: LearnedParts

    def __init__(self, learned: LearnedParts) -> None:
        self.learned = learned.requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """The values that the run began with."""
        return {"learned": self.learned.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """RecipeError unless the values are those that the run began with: they are read from meta.reuse anew."""
        began, now = state["learned"], self.learned.state_dict()
        same = began.keys() == now.keys() and all(torch.equal(began[name], now[name].cpu()) for name in now)
        if not same:
            raise RecipeError(
                ["meta.reuse: has other values than when this run began; put the file back, or choose another run.dir"]
            )

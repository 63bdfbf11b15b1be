"""Learned parts that act with the values they have, without a meta step: meta.frozen and meta.reuse."""

from typing import Any

import torch

from fastaug.errors import RecipeError
from fastaug.meta.parameters import LearnedParts
from fastaug.meta.step import NoMetaStep


class FrozenParts(NoMetaStep):
    """Learned parts of a run that learns nothing: no gradient, no optimizer, no validation images."""

    learned: LearnedParts

    def __init__(self, learned: LearnedParts, source: str = "meta.reuse") -> None:
        """`source`: the key that names the file which the parts are read from at every start."""
        self.learned, self._source = learned.requires_grad_(False), source

    def state_dict(self) -> dict[str, Any]:
        """The values that the run began with, and the settings without which they mean nothing, by the part's name."""
        settings = {name: part.settings() for name, part in self.learned.each().items()}
        return {"learned": self.learned.state_dict(), "settings": settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """RecipeError unless values and settings are those that the run began with: they are read anew."""
        began, current = state["learned"], self.state_dict()
        now = current["learned"]
        same = began.keys() == now.keys() and all(torch.equal(began[name], now[name].cpu()) for name in now)
        # Checkpoints of earlier versions have no settings.
        if not same or state.get("settings", current["settings"]) != current["settings"]:
            text = "does not hold what this run began with; put the file back as it was, or choose another run.dir"
            raise RecipeError([f"{self._source}: {text}"])

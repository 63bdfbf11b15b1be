"""The choice of an engine of fastaug/hypergrad for a run's meta step."""

from collections.abc import Callable

from accelerate.utils import broadcast_object_list

from fastaug.errors import RecipeError
from fastaug.hypergrad import ENGINES
from fastaug.hypergrad.engines.self_check import self_test
from fastaug.hypergrad.problem import Problem
from fastaug.recipe.schema import Recipe

# What is tested where the recipe names an engine that is no function of its own; the rest are tested themselves.
_TESTED = {"auto": tuple(ENGINES), "implicit": tuple(ENGINES), "fused": ("forward",)}


class EngineChoice:
    """Chooses the engine that `meta.engine` names, or the first exact one where it leaves that open; tested once.

    `implicit` is a direction, not an engine: any takes it to the parameters. `fused` takes the steps of `forward`.
    """

    def __init__(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        self.asked, self.network = recipe.meta.engine, recipe.model.name
        # Differences need no formula that could be missing or wrong; how near they come is no matter of the network's.
        self.chosen: str | None = "difference" if self.asked == "difference" else None
        self._say = say

    @property
    def fused(self) -> bool:
        """Whether the meta step is taken inside the training pass."""
        return self.asked == "fused"

    def __call__(self, problem: Problem) -> str:
        """The engine's name; the first call tests on samples of `problem`, prints a table and remembers.

        RecipeError if no engine, or not the one that was named, differentiates this network exactly.
        """
        if self.chosen is None:
            engines, images = _TESTED.get(self.asked, (self.asked,)), problem.samples.images.requires_grad
            try:
                chosen = [self_test(problem, images=images, engines=engines, say=self._say).chosen]
            except ValueError as error:
                raise RecipeError([f"meta.engine: {self.asked} with {self.network}: {error}"]) from error
            broadcast_object_list(chosen)  # every process takes the main one's
            self.chosen = "fused" if self.fused else chosen[0]
        return self.chosen

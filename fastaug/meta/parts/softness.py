"""Learned exponent k of the softening curve s(v) = 1 - (1 - v)^k of Soft Augmentation."""

from dataclasses import replace
from typing import Any

from fastaug.augment.learned_effects import Soften
from fastaug.meta.bounded import Bounded
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.recipe.schema import EXPONENTS


class Softness(LearnedPart):
    """Learned softening exponent k in EXPONENTS, from augment.soften_k on; moves with meta.softness_lr."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.recipe.meta.softness_lr)
        self.k = Bounded(setting.recipe.augment.soften_k, *EXPONENTS, log=True)

    def soften(self, soften: Soften) -> Soften:
        """The recipe's rule with the learned exponent."""
        return replace(soften, k=self.k())

    def settings(self) -> dict[str, Any]:
        """The bounds."""
        return {"bounds": list(EXPONENTS)}

    def summary(self) -> dict[str, float]:
        """The exponent, and how near it is to a bound."""
        return {"soften_k": self.k().item(), "soften_saturation": self.k.saturation().item()}

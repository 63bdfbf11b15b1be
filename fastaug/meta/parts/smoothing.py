"""Learned label smoothing (Szegedy et al. 2016, section 7)."""

from typing import Any

from torch import Tensor

from fastaug.meta.bounded import Bounded
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.recipe.schema import LARGEST_SMOOTHING


class Smoothing(LearnedPart):
    """Learned share of label smoothing, in (0, LARGEST_SMOOTHING), from augment.smoothing on."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.recipe.meta.smoothing_lr)
        self.share = Bounded(setting.recipe.augment.smoothing, 0.0, LARGEST_SMOOTHING)

    def smoothing(self, smoothing: float | Tensor) -> Tensor:  # noqa: ARG002
        """The learned share in place of the recipe's."""
        return self.share()

    def settings(self) -> dict[str, Any]:
        """The bounds."""
        return {"bounds": [0.0, LARGEST_SMOOTHING]}

    def summary(self) -> dict[str, float]:
        """The share, and how near it is to a bound."""
        return {"smoothing": self.share().item(), "smoothing_saturation": self.share.saturation().item()}

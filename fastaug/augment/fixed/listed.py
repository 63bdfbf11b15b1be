"""Fixed sub-policies of a file (recipe/subpolicy_files.py), by torchvision's operations and a cutout.

Levels and draws are those of Fast AutoAugment (Lim et al. 2019) and DADA (Li et al. 2020), whose lists can be read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2  # type: ignore[import-untyped]

from fastaug.augment.fixed.base import Policy
from fastaug.augment.fixed.seeded_draws import draw_by_torch
from fastaug.recipe.subpolicy_files import OPERATIONS, Step, SubPolicy
from fastaug.seeding import IdArray, Key

FACTORS = ("Contrast", "Color", "Brightness", "Sharpness")  # torchvision takes what is above 1 of them


class Act(NamedTuple):
    """An operation as it is done: its value, and where it is done (cutout), in shares of the sides."""

    operation: str
    value: float
    x: float
    y: float


class ListedPolicy(Policy):
    """One sub-policy of a list for each image; `mean` (of images in [0, 1]) is what a cutout shows."""

    def __init__(
        self, subpolicies: Sequence[SubPolicy], size: tuple[int, int], mean: Sequence[float], interpolation: str
    ) -> None:
        self.subpolicies, (self.height, self.width) = tuple(subpolicies), size
        self.grey = tuple(min(255, round(255 * x)) for x in mean)
        self.transform: Any = v2.AutoAugment(interpolation=InterpolationMode(interpolation))  # for its operations

    def sample(self, key: Key, ids: IdArray) -> list[tuple[Act, ...]]:
        """What is done to each image, in order."""
        return draw_by_torch(self._draw, key, ids)

    def _draw(self) -> tuple[Act, ...]:
        """The next image's: as many numbers whatever they are."""
        steps = self.subpolicies[int(torch.randint(len(self.subpolicies), ()))]
        numbers = torch.rand(len(steps), 4).tolist()
        return tuple(
            Act(step.operation, _value(step, mirror < 0.5), x, y)
            for step, (acts, mirror, x, y) in zip(steps, numbers, strict=True)
            if acts < step.probability
        )

    def transformed(self, image: Image.Image, value: Sequence[Act]) -> Image.Image:
        """The image under what is done to it, in order."""
        for act in value:
            image = self._cutout(image, act) if act.operation == "Cutout" else self._changed(image, act)
        return image

    def _changed(self, image: Image.Image, act: Act) -> Image.Image:
        magnitude = act.value
        if act.operation in FACTORS:
            magnitude -= 1
        elif act.operation in ("TranslateX", "TranslateY"):
            magnitude *= self.width if act.operation == "TranslateX" else self.height
        elif act.operation == "Solarize":
            magnitude /= 255
        mode, fill = self.transform.interpolation, self.transform._fill
        changed: Image.Image = self.transform._apply_image_or_video_transform(
            image, act.operation, magnitude, mode, fill
        )
        return changed

    def _cutout(self, image: Image.Image, act: Act) -> Image.Image:
        """A square around a place anywhere in the image, cut off at its sides."""
        side, image = act.value * image.width, image.copy()
        left, top = (int(max(0, at * count - side / 2)) for at, count in ((act.x, image.width), (act.y, image.height)))
        box = (left, top, int(min(image.width, left + side)), int(min(image.height, top + side)))
        image.paste(self.grey, box)
        return image


def _value(step: Step, mirrored: bool) -> float:
    """The value of an operation at a level, in its own unit."""
    low, high, both = OPERATIONS[step.operation]
    value = low + step.level * (high - low)
    return -value if both and mirrored else value

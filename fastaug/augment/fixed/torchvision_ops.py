"""torchvision's TrivialAugmentWide, RandAugment, AutoAugment and ColorJitter, drawn and applied by torchvision.

Its automatic policies draw while they apply; here a copy runs on an image without pixels and records choices.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2  # type: ignore[import-untyped]

from fastaug.augment.fixed.base import apply_each
from fastaug.augment.fixed.seeded_draws import draw_each
from fastaug.recipe.policy_names import PolicyName
from fastaug.seeding import IdArray, Key

Choice = tuple[str, float]  # torchvision's name of the operation, its magnitude


class TorchvisionPolicy:
    """TrivialAugment (Müller, Hutter 2021), RandAugment (Cubuk et al. 2020) or AutoAugment (Cubuk et al. 2019).

    Params: an image's choices.
    """

    def __init__(self, name: PolicyName, size: tuple[int, int], interpolation: str) -> None:
        kind: Any = v2.TrivialAugmentWide
        options: dict[str, Any] = {}
        if name.family == "ra":
            kind = v2.RandAugment
            options = {"num_ops": name.sections.get("n", 2), "magnitude": name.sections.get("m", 9)}
        if name.family == "aa":
            kind, options = v2.AutoAugment, {"policy": AutoAugmentPolicy(name.sections.get("", "imagenet"))}
        mode = InterpolationMode(interpolation)
        self.transform, self.recorder = (kind(interpolation=mode, **options) for _ in range(2))
        self.recorder._apply_image_or_video_transform = self._record
        self.blank = torch.empty(3, *size, device="meta")
        self.choices: list[Choice] = []  # of the image being drawn for

    def _record(self, image: Tensor, transform_id: str, magnitude: float, **_: Any) -> Tensor:
        self.choices.append((transform_id, magnitude))
        return image

    def _draw(self) -> tuple[Choice, ...]:
        self.choices.clear()
        self.recorder(self.blank)
        return tuple(self.choices)

    def sample(self, key: Key, ids: IdArray) -> list[tuple[Choice, ...]]:
        """Names and magnitudes of each image's operations, in order."""
        return draw_each(self._draw, key, ids)

    def apply(self, images: Tensor, params: Sequence[tuple[Choice, ...]]) -> Tensor:
        """Augmented copy of uint8 images [N,H,W,3]."""
        return apply_each(images, params, self._run)

    def _run(self, image: Image.Image, choices: Sequence[Choice]) -> Image.Image:
        mode, fill = self.transform.interpolation, self.transform._fill
        for name, magnitude in choices:
            image = self.transform._apply_image_or_video_transform(image, name, magnitude, mode, fill)
        return image


class ColorJitter:
    """Brightness, contrast and saturation by factors in [1 - amount, 1 + amount], in random order."""

    def __init__(self, amount: float) -> None:
        self.transform = v2.ColorJitter(amount, amount, amount)

    def sample(self, key: Key, ids: IdArray) -> list[dict[str, Any]]:
        """torchvision's parameters of each image."""
        return draw_each(lambda: self.transform.make_params([]), key, ids, number=1)

    def apply(self, images: Tensor, params: Sequence[dict[str, Any]]) -> Tensor:
        """Augmented copy of uint8 images [N,H,W,3]."""
        return apply_each(images, params, self.transform.transform)

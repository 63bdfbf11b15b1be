"""torchvision's TrivialAugmentWide, RandAugment, AutoAugment and ColorJitter, drawn and applied by torchvision.

Its automatic policies draw while they apply; here a copy runs on an image without pixels and records choices.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2  # type: ignore[import-untyped]

from fastaug.augment.fixed.base import Policy
from fastaug.augment.fixed.seeded_draws import draw_by_torch
from fastaug.recipe.policy_names import PolicyName
from fastaug.seeding import IdArray, Key

Choice = tuple[str, float]  # torchvision's name of the operation, its magnitude


class ColourRandAugment(v2.RandAugment):
    """RandAugment of what moves no pixels, the six operations that AutoDO uses beside its learned affine ones."""

    _AUGMENTATION_SPACE = {  # noqa: RUF012  # torchvision's
        **{name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in ("Identity", "AutoContrast", "Equalize")},
        **{name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in ("Color", "Sharpness")},
        "Invert": v2.AutoAugment._AUGMENTATION_SPACE["Invert"],
    }


class Recorder:
    """Records what one of torchvision's automatic policies draws for one image, without applying it."""

    def __init__(self, transform: Any, size: tuple[int, int]) -> None:
        self.transform, self.blank = transform, torch.empty(3, *size, device="meta")
        transform._apply_image_or_video_transform = self._record
        self.choices: list[Choice] = []

    def _record(self, image: Tensor, transform_id: str, magnitude: float, **_: Any) -> Tensor:
        self.choices.append((transform_id, magnitude))
        return image

    def draw(self) -> tuple[Choice, ...]:
        """The next image's choices."""
        self.choices.clear()
        self.transform(self.blank)
        return tuple(self.choices)


class TorchvisionPolicy(Policy):
    """TrivialAugment (Müller, Hutter 2021), RandAugment (Cubuk et al. 2020) or AutoAugment (Cubuk et al. 2019).

    Params: an image's choices.
    """

    def __init__(self, name: PolicyName, size: tuple[int, int], interpolation: str) -> None:
        kind: Any = v2.TrivialAugmentWide
        options: dict[str, Any] = {}
        if name.family == "ra":
            kind = ColourRandAugment if "t" in name.sections else v2.RandAugment
            options = {"num_ops": name.sections.get("n", 2), "magnitude": name.sections.get("m", 9)}
        if name.family == "aa":
            kind, options = v2.AutoAugment, {"policy": AutoAugmentPolicy(name.sections.get("", "imagenet"))}
        mode = InterpolationMode(interpolation)
        self.size, self.transform = size, kind(interpolation=mode, **options)

    def sample(self, key: Key, ids: IdArray) -> list[tuple[Choice, ...]]:
        """Names and magnitudes of each image's operations, in order."""
        recorder = Recorder(copy(self.transform), self.size)  # one for each call, which may be in any thread
        return draw_by_torch(recorder.draw, key, ids)

    def transformed(self, image: Image.Image, value: Sequence[Choice]) -> Image.Image:
        """The image under the choices in order."""
        mode, fill = self.transform.interpolation, self.transform._fill
        for name, magnitude in value:
            image = self.transform._apply_image_or_video_transform(image, name, magnitude, mode, fill)
        return image


class ColorJitter(Policy):
    """Brightness, contrast and saturation by factors in [1 - amount, 1 + amount], in random order."""

    def __init__(self, amount: float) -> None:
        self.transform = v2.ColorJitter(amount, amount, amount)

    def sample(self, key: Key, ids: IdArray) -> list[dict[str, Any]]:
        """torchvision's parameters of each image."""
        return draw_by_torch(lambda: self.transform.make_params([]), key, ids, number=1)

    def transformed(self, image: Image.Image, value: dict[str, Any]) -> Image.Image:
        """The image with its colours changed."""
        changed: Image.Image = self.transform.transform(image, value)
        return changed

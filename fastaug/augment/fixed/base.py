"""The interface of fixed augmentation policies, which change uint8 images between the loader's crop and the fused op.

Sampling is a function of (key, id) alone and gives one plain value per image: what will be done to it.
Applying is a pure function of image and value, so a loader spreads the images of a batch over its threads, before they
go to the device. The operations are Pillow's on every device: torchvision's on tensors give other pixels and are slower
on a CPU (Sharpness 15 times).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fastaug.seeding import IdArray, Key

Pixels = npt.NDArray[np.uint8]


class Policy(ABC):
    """A fixed augmentation policy: draws by (key, id), and applies them to images. Threads may share it."""

    @abstractmethod
    def sample(self, key: Key, ids: IdArray) -> list[Any]:
        """Draws: what happens to each image, [N] values on the host; entry i depends on (key, ids[i]) alone."""

    @abstractmethod
    def transformed(self, image: Image.Image, value: Any) -> Image.Image:
        """The uint8 image under one value of `sample`; draws nothing."""

    def apply_one(self, image: Pixels, value: Any) -> Pixels:
        """The uint8 image [H,W,3] under one value of `sample`; an empty value leaves it as it is."""
        return np.asarray(self.transformed(Image.fromarray(image), value)) if value else image

    def apply(self, images: Tensor, params: Sequence[Any]) -> Tensor:
        """Augmented copy of uint8 `images` [N,H,W,3] under `params`, the values of `sample`; ValueError otherwise."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images must be uint8 [N,H,W,3], found {images.dtype} {tuple(images.shape)}")
        if len(params) != len(images):
            raise ValueError(f"{len(images)} images with the parameters of {len(params)}")
        host = np.ascontiguousarray(images.cpu().numpy())
        out = np.empty(host.shape, dtype=np.uint8)
        for image, value, result in zip(host, params, out, strict=True):
            result[:] = self.apply_one(image, value)
        return torch.from_numpy(out).to(images.device)


class InOrder(Policy):
    """Several policies applied one after the other; for each image, one value per policy."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)

    def sample(self, key: Key, ids: IdArray) -> list[tuple[Any, ...]]:
        """For each image of `ids` [N], one value per policy, drawn by `key`."""
        return list(zip(*(policy.sample(key, ids) for policy in self.policies), strict=True))

    def transformed(self, image: Image.Image, value: Sequence[Any]) -> Image.Image:
        """The uint8 image under every policy in turn, by their own parts of `value`."""
        for policy, own in zip(self.policies, value, strict=True):
            image = policy.transformed(image, own) if own else image
        return image

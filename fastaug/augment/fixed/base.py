"""What a fixed augmentation policy is: applied to uint8 batches between the loader's crop and the fused op.

Sampling is a function of (key, id) alone and gives one plain value per image: what will be done to it.
Applying is a pure function of image and value, so a batch may be cut in pieces and spread over threads. The
operations are Pillow's on every device: torchvision's on tensors give other pixels and are slower on a CPU
(Sharpness 15 times). A batch on a device travels to the host and back: augment before the upload.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastaug.seeding import IdArray, Key


class Policy(Protocol):
    """What every policy does."""

    def sample(self, key: Key, ids: IdArray) -> list[Any]:
        """What happens to each image, [N] values on the host; entry i depends on (key, ids[i]) alone."""

    def apply(self, images: Tensor, params: Sequence[Any]) -> Tensor:
        """Augmented copy of uint8 images [N,H,W,3]; draws nothing."""


class InOrder:
    """Policies one after the other."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)

    def sample(self, key: Key, ids: IdArray) -> list[tuple[Any, ...]]:
        """For each image, one value per policy."""
        return list(zip(*(policy.sample(key, ids) for policy in self.policies), strict=True))

    def apply(self, images: Tensor, params: Sequence[Any]) -> Tensor:
        """Augmented copy of uint8 images [N,H,W,3]."""
        for j, policy in enumerate(self.policies):
            images = policy.apply(images, [values[j] for values in params])
        return images


def apply_each(images: Tensor, params: Sequence[Any], one: Callable[[Image.Image, Any], Image.Image]) -> Tensor:
    """one(image, value) for every image of uint8 [N,H,W,3]; an empty value leaves the image as it is."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be uint8 [N,H,W,3], found {images.dtype} {tuple(images.shape)}")
    if len(params) != len(images):
        raise ValueError(f"{len(images)} images with the parameters of {len(params)}")
    host = images.cpu().numpy()
    out = np.empty(host.shape, dtype=np.uint8)
    for pixels, value, result in zip(host, params, out, strict=True):
        result[:] = np.asarray(one(Image.fromarray(pixels), value)) if value else pixels
    return torch.from_numpy(out).to(images.device)

"""Fixed augmentation policies by name, applied to uint8 batches between the loader's crop and the fused op.

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

from fastaug.recipe.policy_names import parse_policy
from fastaug.seeding import IdArray, Key

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
JITTER_3A = 0.3  # DeiT III (Touvron et al. 2022), section 3.2 and its code


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


def build_policy(
    aa: str | None,
    *,
    img_size: int | tuple[int, int],
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    interpolation: str | None = None,
    color_jitter: float | None = None,
) -> Policy | None:
    """The policy named `aa` (see `names`) for images of `img_size`, None if there is nothing to do.

    timm fills what an operation uncovers with `mean` (of images in [0, 1]), torchvision with black.
    `interpolation` of rotations and the like: None is the library's own (timm: bilinear or bicubic by chance;
    torchvision: nearest). `color_jitter` j adds brightness, contrast and saturation factors in
    [1 - j, 1 + j]; None is none, but 0.3 for 3a.
    """
    name = parse_policy(aa)
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
    if color_jitter is not None and not 0 <= color_jitter <= 1:
        raise ValueError(f"color_jitter must be in [0, 1], found {color_jitter}")
    if color_jitter is None and name is not None and name.family == "3a":
        color_jitter = JITTER_3A
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    policies: list[Policy] = []
    if name is not None and name.library == "timm":
        from fastaug.augment.fixed.timm_ops import timm_policy

        policies.append(timm_policy(name, mean, interpolation))
    elif name is not None:
        from fastaug.augment.fixed.torchvision_ops import TorchvisionPolicy

        policies.append(TorchvisionPolicy(name, size, interpolation or "nearest"))
    if color_jitter:
        from fastaug.augment.fixed.torchvision_ops import ColorJitter

        policies.append(ColorJitter(color_jitter))
    if len(policies) == 2:
        return InOrder(policies)
    return policies[0] if policies else None


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

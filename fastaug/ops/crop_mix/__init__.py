"""Soft crop, CutMix or Mixup, normalisation and cast of a batch in one pass, with the targets that follow.

params = sample_crop_mix(key, ids, images.shape[1:3], Sampling(sigma=0.375, cutmix=1.0))
images, target = crop_mix(images, labels, params, classes=100)
loss = soft_cross_entropy(model(images), target)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastaug.ops.crop_mix.custom_op import crop_mix_op, write_into
from fastaug.ops.crop_mix.masses import soft_targets
from fastaug.ops.crop_mix.noise_fill import with_noise
from fastaug.ops.crop_mix.params import (
    CropMixParams,
    check_params,
    check_white,
    identity_params,
    some_samples,
    to_device,
)
from fastaug.ops.crop_mix.reference import compute_dtype, normaliser
from fastaug.ops.crop_mix.sampling import IMAGENET_MEAN, IMAGENET_STD, Sampling, sample_crop_mix
from fastaug.ops.crop_mix.soften import Soften
from fastaug.targets import SoftTarget, check_labels, check_num_classes

__all__ = [
    "CropMixParams",
    "Sampling",
    "Soften",
    "crop_mix",
    "identity_params",
    "sample_crop_mix",
    "soft_targets",
    "some_samples",
]


def crop_mix(
    images: Tensor,
    labels: Tensor,
    params: CropMixParams,
    *,
    classes: int,
    soften: Soften = Soften(),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> tuple[Tensor, SoftTarget]:
    """Crops, mixes, normalises and casts a batch as `params` say, and gives the soft targets that follow.

    images: uint8 [N,H,W,C], or float [N,C,H,W] in [0, 1]. labels: integers [N]. out: memory for the result, [N,C,H,W]
    channels_last. Returns `dtype` [N,C,H,W] channels_last, and the targets.

    Output pixel (y, x) of sample i is its own view or, in its box, the partner's view at the same place; then
    (x - mean) / std, with mean and std [C] in [0, 1] units, as `dtype`. `classes` is the number that targets spread
    their rest over, `soften` how visibility turns into mass and weight. Gradients reach float images and
    `soften.k`. ValueError for whatever does not fit, fill in other units too; values on a device are not read.
    """
    nhwc = _as_nhwc(images, len(mean))
    n, height, width, channels = nhwc.shape
    _check(labels, classes, n, channels, std, dtype)
    check_white(params, 255 if images.dtype == torch.uint8 else 1)
    if not torch.compiler.is_compiling():
        check_params(params, n, height, width, channels)
        if labels.device.type == "cpu":
            check_labels(labels, classes)
    scale, bias = normaliser(mean, std, images.dtype == torch.uint8)
    packed = params.packed(height, width, compute_dtype(images.dtype, dtype))
    geometry, colour = (to_device(t, images.device) for t in packed)
    if out is None:
        mixed = crop_mix_op(nhwc, geometry, colour, scale, bias, dtype)
    else:
        mixed = _check_out(out, nhwc, dtype)
        write_into(mixed, nhwc, geometry, colour, scale, bias)
    if params.noise is not None:
        mixed = with_noise(mixed, params, None if out is None else mixed)
    target = soft_targets(labels.long(), params, (height, width), classes, soften)
    return mixed.permute(0, 3, 1, 2), target


def _check_out(out: Tensor, nhwc: Tensor, dtype: torch.dtype) -> Tensor:
    """`out` as [N,H,W,C]; ValueError unless it can hold the result in place and no gradient has to pass it."""
    n, height, width, channels = nhwc.shape
    memory = out.permute(0, 2, 3, 1) if out.ndim == 4 else out
    if memory.shape != nhwc.shape or out.dtype != dtype or not memory.is_contiguous() or out.device != nhwc.device:
        raise ValueError(
            f"out must be {dtype} [{n}, {channels}, {height}, {width}] channels_last on {nhwc.device}, found "
            f"{out.dtype} {list(out.shape)} with strides {out.stride()} on {out.device}"
        )
    if torch.is_grad_enabled() and nhwc.requires_grad:
        raise ValueError("out cannot be used where images require a gradient; leave it away")
    return memory


def _as_nhwc(images: Tensor, channels: int) -> Tensor:
    """[N,H,W,C] view of uint8 [N,H,W,C] or float [N,C,H,W]."""
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"images must be uint8 [N,H,W,C] or float [N,C,H,W], found {images.dtype} {tuple(images.shape)}"
        )
    nhwc = images if images.dtype == torch.uint8 else images.permute(0, 2, 3, 1)
    if nhwc.shape[-1] != channels:
        raise ValueError(
            f"mean has {channels} values and images {tuple(images.shape)} {nhwc.shape[-1]} channels; "
            "uint8 batches are [N,H,W,C], float batches [N,C,H,W]"
        )
    return nhwc


def _check(labels: Tensor, classes: int, n: int, channels: int, std: Sequence[float], dtype: torch.dtype) -> None:
    """ValueError for shapes, types and numbers that do not fit; reads no tensor."""
    check_num_classes(classes)
    if labels.shape != (n,) or labels.is_floating_point():
        raise ValueError(f"labels must be integers [{n}], found {labels.dtype} {tuple(labels.shape)}")
    if len(std) != channels:
        raise ValueError(f"std must have {channels} values as mean has, found {len(std)}")
    if not min(std) > 0:
        raise ValueError(f"std must be > 0, found {tuple(std)}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type such as torch.bfloat16, found {dtype}")

"""The definition of the op, in plain torch: any device, any floating type, differentiable in everything."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastaug.ops.crop_mix.params import CropMixParams


def compute_dtype(images: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Type of the arithmetic: float64 where the images or the output are, else float32."""
    return torch.float64 if torch.float64 in (images.dtype, dtype) else torch.float32


def normaliser(mean: Sequence[float], std: Sequence[float], uint8: bool) -> tuple[list[float], list[float]]:
    """(scale, bias) of x * scale + bias = (x / white - mean) / std, per channel; white is 255 for uint8, else 1."""
    white = 255.0 if uint8 else 1.0
    return [1 / (white * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def views(images: Tensor, params: CropMixParams, dtype: torch.dtype) -> Tensor:
    """View of every image [N,H,W,C], `dtype`: flipped if `flip`, read at (y + dy, x + dx), `fill` outside."""
    n, h, w, _ = images.shape
    y = torch.arange(h, device=images.device) + params.dy[:, None]
    x = torch.arange(w, device=images.device) + params.dx[:, None]
    inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
    column = torch.where(params.flip[:, None], w - 1 - x, x)
    sample = torch.arange(n, device=images.device)[:, None, None]
    read = images[sample, y.clamp(0, h - 1)[:, :, None], column.clamp(0, w - 1)[:, None, :]]
    return torch.where(inside[..., None], read.to(dtype), params.fill.to(dtype)[:, None, None, :])


def in_box(params: CropMixParams, height: int, width: int) -> Tensor:
    """Which pixels of each sample its box covers: [N,H,W] bool."""
    top, bottom, left, right = (edge[:, None] for edge in params.box.unbind(1))
    y, x = (torch.arange(size, device=params.box.device) for size in (height, width))
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]


def crop_mix_reference(
    images: Tensor, params: CropMixParams, scale: Sequence[float], bias: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """Crop, mix and normalise images [N,H,W,C] (parameters on their device) -> [N,C,H,W], channels_last.

    Each product and sum is rounded on its own in `compute_dtype`; formulations that do so too are bit-equal.
    """
    kind = compute_dtype(images, dtype)
    own = views(images, params, kind)
    other = own[params.partner]
    share = params.own_share().to(kind)[:, None, None, None]
    mixed = torch.where(share == 1, own, own * share + other * (1 - share))
    out = torch.where(in_box(params, *images.shape[1:3])[..., None], other, mixed)
    factor, offset = (torch.tensor(v, dtype=kind, device=images.device) for v in (scale, bias))
    return (out * factor + offset).to(dtype).permute(0, 3, 1, 2)

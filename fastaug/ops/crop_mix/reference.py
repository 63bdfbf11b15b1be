"""The definition of crop_mix in plain torch: any device, any floating type, differentiable in everything; slow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastaug.ops.crop_mix.params import CropMixParams


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Type of the arithmetic: float64 where the images or the output are, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def normaliser(mean: Sequence[float], std: Sequence[float], uint8: bool) -> tuple[list[float], list[float]]:
    """(scale, bias) of x * scale + bias = (x / white - mean) / std, per channel; white is 255 for uint8, else 1."""
    white = 255.0 if uint8 else 1.0
    return [1 / (white * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def view_index(params: CropMixParams, height: int, width: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Where views show their image [N,H,W] bool, and (sample, row, column) they read there, broadcast alike."""
    device = params.dy.device
    y = torch.arange(height, device=device) + params.dy[:, None]
    x = torch.arange(width, device=device) + params.dx[:, None]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    column = torch.where(params.flip[:, None], width - 1 - x, x).clamp(0, width - 1)
    sample = torch.arange(len(params), device=device)
    return inside, (sample[:, None, None], y.clamp(0, height - 1)[:, :, None], column[:, None, :])


def views(images: Tensor, params: CropMixParams, dtype: torch.dtype) -> Tensor:
    """View of every image [N,H,W,C], `dtype`: flipped if `flip`, read at (y + dy, x + dx), `fill` outside."""
    inside, index = view_index(params, *images.shape[1:3])
    return torch.where(inside[..., None], images[index].to(dtype), params.fill.to(dtype)[:, None, None, :])


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
    kind = compute_dtype(images.dtype, dtype)
    own = views(images, params, kind)
    other = own[params.partner]
    share = params.own_share().to(kind)[:, None, None, None]
    mixed = torch.where(share == 1, own, own * share + other * (1 - share))
    out = torch.where(in_box(params, *images.shape[1:3])[..., None], other, mixed)
    factor, offset = (torch.tensor(v, dtype=kind, device=images.device) for v in (scale, bias))
    return (out * factor + offset).to(dtype).permute(0, 3, 1, 2)


def adjoint_reference(gradient: Tensor, params: CropMixParams, scale: Sequence[float]) -> Tensor:
    """Gradient in the images for one in the output, both [N,H,W,C] float: the transpose of the op's linear part."""
    height, width = gradient.shape[1:3]
    scaled = gradient * torch.tensor(scale, dtype=gradient.dtype, device=gradient.device)
    share = params.own_share().to(gradient.dtype)[:, None, None, None]
    box = in_box(params, height, width)[..., None]
    seen = torch.where(box, 0, scaled * share)
    seen = seen.index_add(0, params.partner, torch.where(box, scaled, scaled * (1 - share)))
    inside, index = view_index(params, height, width)
    out = gradient.new_zeros(gradient.shape)
    return out.index_put_(index, torch.where(inside[..., None], seen, 0), accumulate=True)

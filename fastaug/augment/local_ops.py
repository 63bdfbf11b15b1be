"""Operations that change what is near each other: blur, width of strokes, a blank square, elastic distortion.

As in `differentiable_ops.py`: images float [n,3,H,W] in [0, 1], amounts [n,d], all of them 0 leaves an image exactly
as it is. Gradients in amounts and images are exact, and finite everywhere.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastaug.augment.differentiable_ops import BLACK, Fill, centres, resample

KNOTS = 4  # a side of the elastic grid; its displacements are an operation's 2 * KNOTS**2 numbers
GREY = (0.5, 0.5, 0.5)
_SMALLEST_VARIANCE = 5e-4  # pixels squared; below, Gaussian weights are exactly 1 and 0


def blur(images: Tensor, amount: Tensor, *, largest: float, share: bool) -> Tensor:
    """Gaussian blur whose standard deviation is |amount| [n,1] pixels, or that share of the shorter side.

    `largest` is the largest |amount|: the window reaches to 3 standard deviations of it.
    """
    side = min(images.shape[2:])
    unit = side if share else 1
    radius = min(max(1, math.ceil(3 * largest * unit)), side - 1)
    variance = (amount[:, 0] * unit).square().clamp_min(_SMALLEST_VARIANCE)
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = (-steps.square() / (2 * variance[:, None])).exp()
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    for dim in (2, 3):
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        wide, size = F.pad(images, pad, mode="reflect"), images.shape[dim]
        pieces = [weights[:, k] * wide.narrow(dim, k, size) for k in range(2 * radius + 1)]
        images = torch.stack(pieces).sum(0)
    return images


def stroke(images: Tensor, amount: Tensor, *, largest: float) -> Tensor:
    """Width of strokes: bright ones grow by amount [n,1] pixels to each side (dilation), below 0 they shrink (erosion).

    Between whole pixels the blend of both widths. `largest` is the largest |amount|.
    """
    sign = torch.where(amount < 0, -1.0, 1.0).to(images)[:, :, None, None]
    size = torch.where(amount < 0, -amount, amount)[:, :, None, None]
    for step in range(math.ceil(largest)):
        wider = sign * F.max_pool2d(sign * images, 3, stride=1, padding=1)
        images = images + (size - step).clamp(0, 1) * (wider - images)
    return images


def cutout(images: Tensor, amount: Tensor, *, share: bool, fill: Fill = BLACK) -> Tensor:
    """A square of `fill` (grey for a fill that is no colour) with side |amount[:, 0]|, in pixels or as share.

    amount[:, 1:] is its centre, x and y from -1 to 1 between the edges of the image. A pixel that it covers in part is
    blended, so that its side has a gradient.
    """
    height, width = images.shape[2:]
    half = amount[:, 0].abs() * (min(height, width) if share else 1) / 2
    covers = []
    for place, count in ((amount[:, 2], height), (amount[:, 1], width)):
        middle = ((place + 1) * count / 2)[:, None]
        edges = torch.arange(count, device=images.device, dtype=images.dtype)
        covered = torch.minimum(edges + 1, middle + half[:, None]) - torch.maximum(edges, middle - half[:, None])
        covers.append(covered.clamp(0, 1))
    mask = covers[0][:, None, :, None] * covers[1][:, None, None, :]
    colour = torch.tensor(GREY if isinstance(fill, str) else fill, dtype=images.dtype)[:, None, None]
    colour = colour.to(images.device, non_blocking=True)
    return images + mask * (colour - images)


def elastic(images: Tensor, amount: Tensor, *, fill: Fill = BLACK) -> Tensor:
    """Elastic distortion: amount [n, 2 * KNOTS**2] are displacements, as shares of the sides, of a grid of knots.

    First all of x, then all of y, row by row; between the knots bicubic.
    """
    height, width = images.shape[2:]
    knots = amount.reshape(-1, 2, KNOTS, KNOTS).to(images)
    moved = 2 * F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
    x = centres(width, images).expand(height, width)
    y = centres(height, images)[:, None].expand(height, width)
    return resample(images, moved + torch.stack([x, y]), (amount == 0).all(1), fill)

"""The op in slices of torch, for CPUs without numba and for float64: one sample after the other, in cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, bottom, left, right


def forward(
    images: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], bias: Sequence[float], out: Tensor
) -> None:
    """images [N,H,W,C] -> out [N,H,W,C], floating; see `CropMixParams.packed`. Equal to the definition to the bit."""
    shape = images.shape[1:]
    factor, offset = (torch.tensor(v, dtype=colour.dtype) for v in (scale, bias))
    row, second = (torch.empty(shape, dtype=colour.dtype) for _ in range(2))
    everything, moves = (0, shape[0], 0, shape[1]), geometry.tolist()
    for i, (*_, j, top, bottom, left, right) in enumerate(moves):
        share = colour[i, -1]
        _show(row, everything, images[i], moves[i], colour[i, :-1])
        if share == 1:
            _show(row, (top, bottom, left, right), images[j], moves[j], colour[j, :-1])
        else:
            _show(second, everything, images[j], moves[j], colour[j, :-1])
            row.mul_(share).add_(second.mul_(1 - share))
        out[i] = row.mul_(factor).add_(offset)


def _show(out: Tensor, box: Box, image: Tensor, move: Sequence[int], fill: Tensor) -> None:
    """What `box` shows of an image's view, with `fill` where it ends, into `out` [H,W,C]."""
    (height, width), (dy, dx, flip), (top, bottom, left, right) = out.shape[:2], move[:3], box
    out[top:bottom, left:right] = fill
    y0, y1, x0, x1 = max(top, -dy), min(bottom, height - dy), max(left, -dx), min(right, width - dx)
    if y0 < y1 and x0 < x1:
        start = width - x1 - dx if flip else x0 + dx
        seen = image[y0 + dy : y1 + dy, start : start + x1 - x0]
        out[y0:y1, x0:x1] = seen.flip(1) if flip else seen

"""Known shifts of the held-out images: what an augmentation that learns from them has to find (bilevel_augment)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fastaug.augment.differentiable_ops import Colour, compose, rotation, scaling, translation_x, translation_y, warp

PIXELS = 4


def _zoom(factor: float) -> Tensor:
    return scaling(torch.tensor(factor), torch.tensor(factor))


def _moved(side: int) -> Tensor:
    share = torch.tensor(PIXELS / side)
    return compose(translation_x(share), translation_y(share))


# The matrix [3,3] of each shift of images of a side, as `warp` takes it.
SHIFTS: Mapping[str, Callable[[int], Tensor]] = MappingProxyType(
    {
        "rotate45": lambda _: rotation(torch.tensor(45.0)),
        "shift4px": _moved,
        "zoom1.5": lambda _: _zoom(1.5),
        "zoom0.75": lambda _: _zoom(0.75),
    }
)


def known_shift(images: Tensor, name: str, fill: Colour) -> Tensor:
    """Float images [N,3,S,S] in [0, 1], each turned, moved or zoomed by the same known amount; nothing is drawn."""
    matrix = SHIFTS[name](images.shape[-1])
    return warp(images, matrix.expand(len(images), 3, 3), fill)

"""Crop windows as integers [N, 4] (top, left, height, width), drawn or computed for images of known size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.seeding import Key, uniform

Ints = npt.NDArray[np.int64] | npt.NDArray[np.int32]
_ATTEMPTS = 10  # as torchvision


class Windows(NamedTuple):
    """Crop windows of N images on their way to S x S pixels: cut `window`, resize to `size`, cut S x S at `offset`."""

    window: Ints  # [N, 4] top, left, height, width in the image
    size: Ints  # [N, 2] height, width after resizing
    offset: Ints  # [N, 2] top, left of the final S x S cut


def _resized(window: Ints, side: int) -> Windows:
    size = np.full((len(window), 2), side, dtype=np.int64)
    return Windows(window, size, np.zeros_like(size))


def whole(heights: Ints, widths: Ints, side: int) -> Windows:
    """Windows of whole images, resized to S x S whatever their aspect ratio."""
    zero = np.zeros(len(heights), dtype=np.int64)
    return _resized(np.stack([zero, zero, heights, widths], axis=1).astype(np.int64), side)


def center(heights: Ints, widths: Ints, side: int, crop_pct: float) -> Windows:
    """Centre crops as timm and torchvision evaluate: short side to floor(side / crop_pct), then the middle."""
    target = int(np.floor(side / crop_pct))
    h, w = np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64)
    short = np.minimum(h, w)
    size = np.stack([np.where(h <= w, target, target * h // short), np.where(w <= h, target, target * w // short)], 1)
    offset = np.rint((size - side) / 2).astype(np.int64)
    return Windows(whole(h, w, side).window, size, offset)


def random_resized(
    key: Key, ids: Ints, heights: Ints, widths: Ints, side: int, scale: Sequence[float], ratio: Sequence[float]
) -> Windows:
    """Random resized crops ("Going deeper with convolutions", arXiv:1409.4842; torchvision's rules), keyed by id.

    Up to ten windows of uniform area share in `scale` and log-uniform width / height in `ratio`; the first that fits
    is placed uniformly. If none fits: the largest middle window within `ratio`.
    """
    h, w = (np.asarray(x, dtype=np.float64)[:, None] for x in (heights, widths))
    u = uniform(key, ids, 2 + 2 * _ATTEMPTS)
    area = h * w * (scale[0] + (scale[1] - scale[0]) * u[:, 2::2])
    aspect = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * u[:, 3::2])
    tall, wide = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (tall > 0) & (wide > 0) & (tall <= h) & (wide <= w)
    first = fits.argmax(axis=1)[:, None]
    none = ~fits.any(axis=1)[:, None]
    fallback_tall = np.where(w / h < ratio[0], np.rint(w / ratio[0]), h)
    fallback_wide = np.where(w / h > ratio[1], np.rint(h * ratio[1]), w)
    tall = np.where(none, fallback_tall.clip(1, h), np.take_along_axis(tall, first, 1))
    wide = np.where(none, fallback_wide.clip(1, w), np.take_along_axis(wide, first, 1))
    # Where no attempt fitted, the window stays in the middle.
    top = np.where(none, (h - tall) // 2, np.floor(u[:, :1] * (h - tall + 1)))
    left = np.where(none, (w - wide) // 2, np.floor(u[:, 1:2] * (w - wide + 1)))
    return _resized(np.concatenate([top, left, tall, wide], axis=1).astype(np.int64), side)

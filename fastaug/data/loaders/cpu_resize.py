"""Antialiased resizing of cut windows on the CPU by torch's uint8 SIMD kernels, image by image in a few threads.

torch's own threads take no part: they work inside of one image, which is too small for them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.data.crop_windows import Windows

Pixels = npt.NDArray[np.uint8]
Image = Pixels | Tensor
Finish = Callable[[int, Pixels], Pixels]  # what else happens to image `row` of a batch, uint8 [S, S, C]

_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
_SUPPORT = {"bilinear": 1, "bicubic": 2}  # half the width of the filter, in pixels of the coarser grid


class Resizing(NamedTuple):
    """A batch that is being resized: `result()` waits for it, and raises what went wrong in a thread."""

    images: Tensor
    parts: list["Future[None]"]

    def result(self) -> Tensor:
        """The resized images [N, side, side, C] uint8."""
        for part in self.parts:
            part.result()
        return self.images


class Resizer:
    """Resizes batches on `threads` threads of its own, which end with it. `interpolation`: "bilinear" or "bicubic".

    Images have any number of `channels`, C, each of which is resized as if it were alone.
    """

    def __init__(self, threads: int, interpolation: str, channels: int = 3) -> None:
        self.threads, self._kernel, self.channels = threads, _KERNELS[interpolation], channels
        self._pool = ThreadPoolExecutor(threads, "fastaug-resize")

    def batch(self, images: Sequence[Image], windows: Windows, side: int, finish: Finish | None = None) -> Tensor:
        """[N, side, side, C] uint8: images[i], uint8 [h_i, w_i, C], resized to windows.size[i] and cut at its offset.

        images[i] holds exactly windows.window[i] and is asked for in the thread that resizes it. Only its last two
        dimensions need be contiguous. `finish(i, cut)` is called in that thread too; the batch holds what it returns.
        """
        return self.start(images, windows, side, finish).result()

    def start(self, images: Sequence[Image], windows: Windows, side: int, finish: Finish | None = None) -> Resizing:
        """Starts what `batch` does, without waiting for the result."""
        count = len(windows.size)
        out = np.empty((count, side, side, self.channels), dtype=np.uint8)
        parts = [
            self._pool.submit(self._resize, images, windows, out, range(first, count, self.threads), finish)
            for first in range(min(self.threads, count))
        ]
        return Resizing(torch.from_numpy(out), parts)

    def _resize(
        self, images: Sequence[Image], windows: Windows, out: Pixels, rows: range, finish: Finish | None
    ) -> None:
        sizes, offsets = windows.size[rows].tolist(), windows.offset[rows].tolist()
        whole = [out.shape[1]] * 2
        for row, size, offset in zip(rows, sizes, offsets, strict=True):
            image = images[row]
            pixels = image.numpy() if isinstance(image, Tensor) else image
            if size == whole:
                self._resize_one(pixels, out[row])
            else:
                resized = np.empty((*size, self.channels), dtype=np.uint8)
                self._resize_one(pixels, resized)
                top, left = offset
                out[row] = resized[top : top + whole[0], left : left + whole[1]]
            if finish is not None:
                out[row] = finish(row, out[row])

    def _resize_one(self, source: Pixels, target: Pixels) -> None:
        # NumPy copies what the kernel cannot take as it is: a copy by torch would wake its threads for every image.
        if not (source.flags.c_contiguous and source.flags.writeable):
            source = source.copy()
        self._kernel(_channels_last(source), target.shape[:2], False, out=_channels_last(target))


def _channels_last(image: Pixels) -> Tensor:
    """[1, C, H, W] in the memory of [H, W, C]."""
    return torch.from_numpy(image[None].transpose(0, 3, 1, 2))


def needed(windows: Windows, side: int, interpolation: str) -> Windows:
    """Smaller crop windows for the same cuts of `side` pixels: input that no pixel of the cut depends on is left out.

    A window is narrowed only to places where a whole input pixel ends with a whole output pixel: the resized pixels are
    those of the whole image. Where there is no such place, as between sizes without a common divisor, it stays.
    """
    extent, size, offset = windows.window[:, 2:], windows.size, windows.offset
    scale = extent / size  # [N, 2] input pixels of an output pixel
    # A cut pixel's filter reaches this far beyond the pixel's edge, in output pixels.
    margin = _SUPPORT[interpolation] * np.maximum(1, 1 / scale) - 0.5
    step = size // np.gcd(extent, size)  # output pixels from one such place to the next
    before = np.maximum(np.floor(offset - margin), 0).astype(np.int64) // step * step
    after = np.maximum(np.floor(size - (offset + side) - margin), 0).astype(np.int64) // step * step
    first, last = before * extent // size, after * extent // size
    window = np.concatenate([windows.window[:, :2] + first, extent - first - last], axis=1)
    return Windows(window, size - before - after, offset - before)

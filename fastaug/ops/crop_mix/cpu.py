"""The CPU formulation: every output row is put together from spans in the first cache, then written once.

A row is: fill | visible span | fill of the own view, cut open where the box is for the partner's. The spans are
decided by the parameters, so that no pixel asks where it comes from. Rows are addresses here, see `vectors`.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fastaug.ops.crop_mix.vectors import LINE, PIXELS, affine_pixels, copy_bytes

STREAM_BYTES = 4 << 20  # larger outputs do not stay in cache until the network reads them: write past it

jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@jit
def _affine_span(to, read, size, like, scale, bias, width, flip):  # type: ignore[no-untyped-def]
    """`width` pixels at address `read` -> float32 at `to`, times scale plus bias, in reverse order if `flip`."""
    pixel, out = size * len(scale), 4 * len(scale)
    if width < PIXELS:
        for x in range(width):
            source = width - 1 - x if flip else x
            affine_pixels(to + x * out, read + source * pixel, like, scale, bias, 1, 0, 0)
        return
    for step in range(0, width, PIXELS):
        x = min(step, width - PIXELS)  # the last block overlaps the one before
        if flip:
            affine_pixels(to + x * out, read + (width - PIXELS - x) * pixel, like, scale, bias, PIXELS, 1, 0)
        else:
            affine_pixels(to + x * out, read + x * pixel, like, scale, bias, PIXELS, 0, 0)


@jit
def _fill_span(to, read, count, width):  # type: ignore[no-untyped-def]
    """`width` pixels of float32 at `to` from a block of equal pixels at `read`."""
    if width < PIXELS:
        for e in range(width * count):
            copy_bytes(to + 4 * e, read + 4 * (e % count), 4, 0)
        return
    for step in range(0, width, PIXELS):
        x = min(step, width - PIXELS)
        for c in range(count):
            copy_bytes(to + 4 * count * x + LINE * c, read + LINE * c, LINE, 0)


@jit
def _clipped(low, high, line, dx, height, width):  # type: ignore[no-untyped-def]
    """First and last + 1 of the columns low to high in which a view shows its image."""
    first = min(max(low, -dx), high)
    stop = max(min(high, width - dx), first)
    return (first, stop) if 0 <= line < height else (high, high)


@jit
def _view_span(to, low, high, y, view, frame, like, scale, bias):  # type: ignore[no-untyped-def]
    """Columns low to high of row y of a view into the row at `to`; view: image and fill addresses, dy, dx, flip."""
    image, fill, dy, dx, flip = view
    height, width, size = frame
    pixel = 4 * len(scale)
    first, stop = _clipped(low, high, y + dy, dx, height, width)
    _fill_span(to + low * pixel, fill, len(scale), first - low)
    _fill_span(to + stop * pixel, fill, len(scale), high - stop)
    start = width - stop - dx if flip else first + dx
    read = image + ((y + dy) * width + start) * size * len(scale)
    _affine_span(to + first * pixel, read, size, like, scale, bias, stop - first, flip)


@jit
def _write_row(to, read, size, stream):  # type: ignore[no-untyped-def]
    """`size` bytes of a finished row to memory; the size is even."""
    head = min(-to % LINE, size) if stream else 0
    lines = (size - head) // LINE
    for b in range(0, head, 2):
        copy_bytes(to + b, read + b, 2, 0)
    for b in range(head, head + lines * LINE, LINE):
        if stream:
            copy_bytes(to + b, read + b, LINE, 1)
        else:
            copy_bytes(to + b, read + b, LINE, 0)
    for b in range(head + lines * LINE, size, 2):
        copy_bytes(to + b, read + b, 2, 0)


@jit
def _bfloat16(half, row):  # type: ignore[no-untyped-def]
    """Rounds float32 `row`, seen as uint32, to the bits of bfloat16 in `half`: nearest even, NaN stays NaN."""
    for e in range(np.uint64(len(half))):
        word = row[e]
        up = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        half[e] = np.uint32(0x7FC0) if (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else up


@jit
def _blend(row, second, share):  # type: ignore[no-untyped-def]
    rest = np.float32(1) - share
    for e in range(np.uint64(len(row))):
        row[e] = row[e] * share + second[e] * rest


@jit
def _view(images, n, geometry, colour, scale, bias, fill):  # type: ignore[no-untyped-def]
    """What `_view_span` needs to know of sample n; writes its block of fill pixels."""
    _, height, width, count = images.shape
    for e in range(len(fill)):
        fill[e] = colour[n, e % count] * scale[e % count] + bias[e % count]
    image = images.ctypes.data + n * height * width * count * images.itemsize
    dy, dx, flip = np.int64(geometry[n, 0]), np.int64(geometry[n, 1]), np.int64(geometry[n, 2])
    return np.int64(image), np.int64(fill.ctypes.data), dy, dx, flip


@jit
def _pasted_row(to, y, own, other, box, frame, like, scale, bias):  # type: ignore[no-untyped-def]
    """Row y of a sample without a blend, normalised, at `to`."""
    top, bottom, left, right = box
    a, b = (left, right) if top <= y < bottom else (0, 0)
    _view_span(to, 0, a, y, own, frame, like, scale, bias)
    _view_span(to, a, b, y, other, frame, like, scale, bias)
    _view_span(to, b, frame[1], y, own, frame, like, scale, bias)


@jit
def _forward(images, geometry, colour, scale, bias, unit, out, stream, work, start, stop):  # type: ignore[no-untyped-def]
    """Samples start to stop: images [N,H,W,C] -> out [N,H,W,C], float32 as uint32 or bfloat16 as uint16.

    unit: (ones, zeros) like scale and bias. work: two rows float32, two blocks of fill, a row uint16; they belong
    to the caller, because numba frees an array of its own after the last line that names it, addresses or not.
    """
    height, width, count = images.shape[1:]
    frame, like, pixels = (height, width, images.itemsize), images[0, 0, 0, 0], width * count
    row, second, fill, other_fill, half = work
    to, plain = row.ctypes.data, np.float32(0)
    source = half.ctypes.data if out.itemsize == 2 else to
    for n in range(start, stop):
        share = colour[n, count]
        factor, offset = unit if share != 1 else (scale, bias)
        own = _view(images, n, geometry, colour, factor, offset, fill)
        other = _view(images, geometry[n, 3], geometry, colour, factor, offset, other_fill)
        box = (geometry[n, 4], geometry[n, 5], geometry[n, 6], geometry[n, 7])
        for y in range(height):
            if share != 1:
                _view_span(to, 0, width, y, own, frame, like, factor, offset)
                _view_span(second.ctypes.data, 0, width, y, other, frame, like, factor, offset)
                _blend(row, second, share)
                _affine_span(to, to, 4, plain, scale, bias, width, False)
            else:
                _pasted_row(to, y, own, other, box, frame, like, scale, bias)
            if out.itemsize == 2:
                _bfloat16(half, row.view(np.uint32))
            place = out.ctypes.data + (n * height + y) * pixels * out.itemsize
            _write_row(place, source, pixels * out.itemsize, stream)

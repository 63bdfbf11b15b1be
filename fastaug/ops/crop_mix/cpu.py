"""The CPU formulation: every output row is put together from spans in the first cache, then written once.

A row is: fill | visible span | fill of the own view, cut open where the box is for the partner's. The spans are
decided by the parameters, so that no pixel asks where it comes from.

Two things about numba shape the code: indices are unsigned, because it vectorises no loop whose index may be
negative; and helpers are inlined before typing, because an array handed to a function costs reference counts.
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

from fastaug.ops.crop_mix.vectors import LINE, PIXELS, reverse_block, stream_line

STREAM_BYTES = 4 << 20  # larger outputs do not stay in cache until the network reads them: write past it

inlined = numba.njit(inline="always", error_model="numpy")
jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@inlined
def _reversed(scratch, images, n, y, start, length, channels):  # type: ignore[no-untyped-def]
    """Pixels of images[n, y, start : start + length] in reverse order into `scratch`."""
    count = len(channels)
    width = length // count
    vectors = width // PIXELS * PIXELS
    size = images.itemsize * count
    to = scratch.ctypes.data
    read = images.ctypes.data + ((n * images.shape[1] + y) * images.shape[2] + start) * images.itemsize
    for x in range(0, vectors, PIXELS):
        reverse_block(to + x * size, read + (width - PIXELS - x) * size, images, channels)
    for x in range(vectors, width):
        for c in range(count):
            scratch[x * count + c] = images[n, y, start + (width - 1 - x) * count + c]


@inlined
def _view(rows, r, low, high, images, n, y, geometry, fill, scale, bias, channels, scratch):  # type: ignore[no-untyped-def]
    """Columns low to high of row y of the view of image n, times scale plus bias, into rows[r]."""
    count = len(channels)
    height, total = images.shape[1], images.shape[2]
    line = y + geometry[n, 0]
    dx = geometry[n, 1]
    first = min(max(low, -dx), high)
    stop = max(min(high, total // count - dx), first)
    if line < 0 or line >= height:
        first = stop = high
    for e in range(np.uint64(low * count), np.uint64(first * count)):
        rows[r, e] = fill[e]
    for e in range(np.uint64(stop * count), np.uint64(high * count)):
        rows[r, e] = fill[e]
    start, length = (first + dx) * count, (stop - first) * count
    at, n, line = np.uint64(first * count), np.uint64(n), np.uint64(line)
    if length > 0 and geometry[n, 2] != 0:
        _reversed(scratch, images, n, line, total - start - length, length, channels)
        for e in range(np.uint64(length)):
            rows[r, at + e] = np.float32(scratch[e]) * scale[at + e] + bias[at + e]
    elif length > 0:
        start = np.uint64(start)
        for e in range(np.uint64(length)):
            rows[r, at + e] = np.float32(images[n, line, start + e]) * scale[at + e] + bias[at + e]


@inlined
def _rounded(words, half):  # type: ignore[no-untyped-def]
    """Bits of float32 `words` -> bits of bfloat16, to nearest even; NaN stays NaN."""
    for e in range(np.uint64(len(half))):
        word = words[e]
        up = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        half[e] = np.uint32(0x7FC0) if (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else up


@inlined
def _streamed(out, n, y, row):  # type: ignore[no-untyped-def]
    """Row [L] of out's type to out[n, y] with stores that go past the caches, whole lines of 64 bytes."""
    size, length = out.itemsize, len(row)
    to = out.ctypes.data + (n * out.shape[1] + y) * length * size
    read = row.ctypes.data
    head = min(length, (-to % LINE) // size)
    lines = (length - head) * size // LINE
    stop = head + lines * LINE // size
    un, uy = np.uint64(n), np.uint64(y)
    for e in range(np.uint64(head)):
        out[un, uy, e] = row[e]
    for line in range(lines):
        stream_line(to + head * size + line * LINE, read + head * size + line * LINE)
    for e in range(np.uint64(stop), np.uint64(length)):
        out[un, uy, e] = row[e]


@jit
def _pasted(images, geometry, colour, scale, bias, channels, out, stream, n):  # type: ignore[no-untyped-def]
    """Sample n without a blend: its own spans, and the partner's inside of the box."""
    height, length = images.shape[1], images.shape[2]
    count = len(channels)
    width, partner = length // count, geometry[n, 3]
    top, bottom, left, right = geometry[n, 4], geometry[n, 5], geometry[n, 6], geometry[n, 7]
    rows, fills = np.empty((1, length), dtype=np.float32), np.empty((2, length), dtype=np.float32)
    for e in range(length):
        fills[0, e] = colour[n, e % count] * scale[e] + bias[e]
        fills[1, e] = colour[partner, e % count] * scale[e] + bias[e]
    own, other, scratch = fills[0], fills[1], np.empty(length, dtype=images.dtype)
    for y in range(height):
        a, b = (left, right) if top <= y < bottom else (0, 0)
        _view(rows, 0, 0, a, images, n, y, geometry, own, scale, bias, channels, scratch)
        _view(rows, 0, a, b, images, partner, y, geometry, other, scale, bias, channels, scratch)
        _view(rows, 0, b, width, images, n, y, geometry, own, scale, bias, channels, scratch)
        _streamed(out, n, y, rows[0].view(np.uint32))

"""The CPU formulation: every output row is put together from spans in the first cache, then written once.

A row is: fill | visible span | fill of the own view, cut open where the box is for the partner's. The spans are
decided by the parameters, so that no pixel asks where it comes from.
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

from fastaug.ops.crop_mix.vectors import LINE, reversed_pixels, streamed

STREAM_BYTES = 4 << 20  # larger outputs do not stay in cache until the network reads them: write past it

jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@jit
def _tiled(values, length):  # type: ignore[no-untyped-def]
    """The channel values of a pixel, repeated along a row."""
    row = np.empty(length, dtype=np.float32)
    for e in range(length):
        row[e] = values[e % len(values)]
    return row


@jit
def _affine(out, at, source, start, length, scale, bias):  # type: ignore[no-untyped-def]
    """out[at + e] = source[start + e] * scale[at + e] + bias[at + e]; unsigned indices let numba vectorise it."""
    for e in range(np.uint64(length)):
        out[at + e] = np.float32(source[start + e]) * scale[at + e] + bias[at + e]


@jit
def _copy(target, source, start, stop):  # type: ignore[no-untyped-def]
    for e in range(np.uint64(start), np.uint64(stop)):
        target[e] = source[e]


@jit
def _view(row, low, high, images, n, y, geometry, fill, scale, bias, channels, scratch):  # type: ignore[no-untyped-def]
    """Columns low to high of row y of the view of image n, normalised, into `row`."""
    count = len(channels)
    height, total = images.shape[1:]
    dy, dx, flip = geometry[n, 0], geometry[n, 1], geometry[n, 2]
    first = min(max(low, -dx), high)
    stop = max(min(high, total // count - dx), first)
    if not 0 <= y + dy < height:
        first = stop = high
    _copy(row, fill, low * count, first * count)
    _copy(row, fill, stop * count, high * count)
    if first == stop:
        return
    start, length = (first + dx) * count, (stop - first) * count
    line = images[n, y + dy]
    at = np.uint64(first * count)
    if flip:
        reversed_pixels(scratch, line, total - start - length, length, channels)
        _affine(row, at, scratch, np.uint64(0), length, scale, bias)
    else:
        _affine(row, at, line, np.uint64(start), length, scale, bias)


@jit
def _round_bfloat16(out, row):  # type: ignore[no-untyped-def]
    """float32 `row` -> bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = row.view(np.uint32)
    for e in range(len(row)):
        word = bits[e]
        rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        out[e] = rounded if row[e] == row[e] else np.uint32(0x7FC0)


@jit
def _write(out, row, half, stream):  # type: ignore[no-untyped-def]
    """One finished row to memory: float32, or rounded where `out` holds 2-byte values."""
    if out.itemsize == 2:
        _round_bfloat16(half, row)
        source = half
    else:
        source = row.view(out.dtype)
    if stream:
        streamed(out, source)
    else:
        out[:] = source


@jit
def _pasted(images, n, geometry, colour, scale, bias, channels, out, stream):  # type: ignore[no-untyped-def]
    """Sample n without a blend: its own spans, and the partner's inside of the box."""
    height, length = images.shape[1:]
    width, partner = length // len(channels), geometry[n, 3]
    top, bottom, left, right = geometry[n, 4:8]
    row, scratch = np.empty(length, dtype=np.float32), np.empty(length, dtype=images.dtype)
    half = np.empty(length, dtype=out.dtype)
    fill, other, zero = np.empty_like(row), np.empty_like(row), np.uint64(0)
    _affine(fill, zero, _tiled(colour[n, :-1], length), zero, length, scale, bias)
    _affine(other, zero, _tiled(colour[partner, :-1], length), zero, length, scale, bias)
    for y in range(height):
        a, b = (left, right) if top <= y < bottom else (0, 0)
        _view(row, 0, a, images, n, y, geometry, fill, scale, bias, channels, scratch)
        _view(row, a, b, images, partner, y, geometry, other, scale, bias, channels, scratch)
        _view(row, b, width, images, n, y, geometry, fill, scale, bias, channels, scratch)
        _write(out[n, y], row, half, stream)


@jit
def _blended(images, n, geometry, colour, scale, bias, channels, out, stream):  # type: ignore[no-untyped-def]
    """Sample n as a blend of two whole views, in image units before normalising."""
    height, length = images.shape[1:]
    width, partner, share = length // len(channels), geometry[n, 3], colour[n, -1]
    row, scratch = np.empty(length, dtype=np.float32), np.empty(length, dtype=images.dtype)
    half, second = np.empty(length, dtype=out.dtype), np.empty_like(row)
    fill, other = _tiled(colour[n, :-1], length), _tiled(colour[partner, :-1], length)
    one, zero = np.ones_like(row), np.zeros_like(row)
    for y in range(height):
        _view(row, 0, width, images, n, y, geometry, fill, one, zero, channels, scratch)
        _view(second, 0, width, images, partner, y, geometry, other, one, zero, channels, scratch)
        for e in range(length):
            row[e] = (row[e] * share + second[e] * (np.float32(1) - share)) * scale[e] + bias[e]
        _write(out[n, y], row, half, stream)


@jit
def _forward(images, geometry, colour, factors, offsets, out, stream, start, stop):  # type: ignore[no-untyped-def]
    """Samples start to stop of images [N,H,W*C] into the bits of out [N,H,W*C] (uint32, or uint16 for bfloat16)."""
    scale, bias = _tiled(factors, images.shape[2]), _tiled(offsets, images.shape[2])
    for n in range(start, stop):
        if colour[n, -1] == 1:
            _pasted(images, n, geometry, colour, scale, bias, factors, out, stream)
        else:
            _blended(images, n, geometry, colour, scale, bias, factors, out, stream)


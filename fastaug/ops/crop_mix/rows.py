"""The CPU formulation: every output row is put together from spans in the first cache, then written once.

A row is: fill | visible span | fill of the own view, cut open where the box is for the partner's. The spans are
decided by the parameters, so that no pixel asks where it comes from.

Spans are walked in blocks of pixels written as LLVM vectors (any length, any CPU), because a compiler finds neither
the reversal of pixels nor stores past the caches by itself; and by address, because every array that numba hands on
costs atomic reference counts, more than a row of pixels does. One file: numba's cache on disk sees no other change.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

PIXELS = 16  # pixels in a block: 48 bytes of RGB fit one AVX-512 register, 48 floats fill three
LINE = 64  # bytes of a cache line

FLOAT, INDEX = ir.FloatType(), ir.IntType(32)

jit = numba.njit(nogil=True, cache=True, error_model="numpy")


def _at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _reversed(builder: Any, vector: Any, count: int, pixels: int) -> Any:
    """The pixels of a vector in reverse order, their channels as they were."""
    order = [count * (pixels - 1 - e // count) + e % count for e in range(count * pixels)]
    mask = ir.Constant(ir.VectorType(INDEX, len(order)), order)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


@intrinsic(prefer_literal=True)
def affine_pixels(
    _context: Any,
    target: Any,
    source: Any,
    table: Any,
    like: Any,
    channels: Any,
    pixels: Any,
    reverse: Any,
    add: Any,
) -> Any:
    """float32 at `target` := x * scale + bias, for pixels x of like's type at `source`; reversed if `reverse`.

    table: address of scale, then bias, float32, each repeated for a whole block of pixels. channels: any tuple of C
    values. pixels, reverse, add: literals. With `add`: target := target + x * scale * bias.
    """
    count, block = channels.count, pixels.literal_value
    integer = isinstance(like, types.Integer)
    kind = ir.IntType(like.bitwidth) if integer else FLOAT

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        out = ir.VectorType(FLOAT, count * block)
        x = builder.load(_at(builder, args[1], ir.VectorType(kind, count * block)), align=1)
        x = _reversed(builder, x, count, block) if reverse.literal_value else x
        x = builder.uitofp(x, out) if integer else x
        x = builder.fmul(x, builder.load(_at(builder, args[2], out), align=4))
        bias = builder.add(args[2], ir.Constant(args[2].type, 4 * count * PIXELS))
        second = builder.load(_at(builder, bias, out), align=4)
        place = _at(builder, args[0], out)
        if add.literal_value:
            x = builder.fadd(builder.load(place, align=4), builder.fmul(x, second))
        else:
            x = builder.fadd(x, second)
        builder.store(x, place, align=4)
        return context.get_dummy_value()

    return types.void(target, source, table, like, channels, pixels, reverse, add), generate


@intrinsic(prefer_literal=True)
def copy_bytes(_context: Any, target: Any, source: Any, size: Any, stream: Any) -> Any:
    """Copies `size` bytes; with `stream` past the caches (no read of the line first) to a `target` aligned to size."""
    count = size.literal_value

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), count)
        aligned = count if stream.literal_value else 1
        store = builder.store(
            builder.load(_at(builder, args[1], kind), align=1), _at(builder, args[0], kind), align=aligned
        )
        if stream.literal_value:
            store.set_metadata("nontemporal", builder.module.add_metadata([INDEX(1)]))
        return context.get_dummy_value()

    return types.void(target, source, size, stream), generate


@jit
def _affine_span(to, read, table, size, like, channels, width, flip):  # type: ignore[no-untyped-def]
    """`width` pixels at address `read` -> float32 at `to`, times scale plus bias, in reverse order if `flip`."""
    pixel, out = size * len(channels), 4 * len(channels)
    if width < PIXELS:
        for x in range(width):
            source = width - 1 - x if flip else x
            affine_pixels(to + x * out, read + source * pixel, table, like, channels, 1, 0, 0)
        return
    for step in range(0, width, PIXELS):
        x = min(step, width - PIXELS)  # the last block overlaps the one before
        if flip:  # reads still go up in memory: prefetching does not turn round
            place = to + (width - PIXELS - x) * out
            affine_pixels(place, read + x * pixel, table, like, channels, PIXELS, 1, 0)
        else:
            affine_pixels(to + x * out, read + x * pixel, table, like, channels, PIXELS, 0, 0)


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
def _view_span(to, low, high, y, view, frame, table, like, channels):  # type: ignore[no-untyped-def]
    """Columns low to high of row y of a view into the row at `to`; view: image and fill addresses, dy, dx, flip."""
    image, fill, dy, dx, flip = view
    height, width, size = frame
    count = len(channels)
    first, stop = _clipped(low, high, y + dy, dx, height, width)
    _fill_span(to + low * 4 * count, fill, count, first - low)
    _fill_span(to + stop * 4 * count, fill, count, high - stop)
    start = width - stop - dx if flip else first + dx
    read = image + ((y + dy) * width + start) * size * count
    _affine_span(to + first * 4 * count, read, table, size, like, channels, stop - first, flip)


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
    """second := row * share + second * (1 - share)."""
    rest = np.float32(1) - share
    for e in range(np.uint64(len(row))):
        second[e] = row[e] * share + second[e] * rest


@jit
def _view(images, n, geometry, colour, table, fill):  # type: ignore[no-untyped-def]
    """What `_view_span` needs to know of sample n; writes its block of fill pixels."""
    _, height, width, count = images.shape
    for e in range(len(fill)):
        fill[e] = colour[n, e % count] * table[0, e] + table[1, e]
    image = images.ctypes.data + n * height * width * count * images.itemsize
    dy, dx, flip = np.int64(geometry[n, 0]), np.int64(geometry[n, 1]), np.int64(geometry[n, 2])
    return np.int64(image), np.int64(fill.ctypes.data), dy, dx, flip


@jit
def _pasted_row(to, y, own, other, box, frame, table, like, channels):  # type: ignore[no-untyped-def]
    """Row y of a sample without a blend, normalised, at `to`."""
    top, bottom, left, right = box
    a, b = (left, right) if top <= y < bottom else (0, 0)
    _view_span(to, 0, a, y, own, frame, table, like, channels)
    _view_span(to, a, b, y, other, frame, table, like, channels)
    _view_span(to, b, frame[1], y, own, frame, table, like, channels)


@jit
def forward(images, geometry, colour, tables, channels, out, stream, work, start, stop):  # type: ignore[no-untyped-def]
    """Samples start to stop: images [N,H,W,C] -> out [N,H,W,C], float32 as uint32 or bfloat16 as uint16.

    tables: normalising and neutral. work: two rows float32, two blocks of fill, a row uint16; all belong to the
    caller, because numba frees an array of its own after the last line that names it, addresses or not.
    """
    height, width, count = images.shape[1:]
    frame, like, pixels = (height, width, images.itemsize), images[0, 0, 0, 0], width * count
    row, second, fill, other_fill, half = work
    to, norm, plain = row.ctypes.data, tables[0].ctypes.data, tables[1].ctypes.data
    source = half.ctypes.data if out.itemsize == 2 else to
    for n in range(start, stop):
        share = colour[n, count]
        own = _view(images, n, geometry, colour, tables[int(share != 1)], fill)
        other = _view(images, geometry[n, 3], geometry, colour, tables[int(share != 1)], other_fill)
        box = (geometry[n, 4], geometry[n, 5], geometry[n, 6], geometry[n, 7])
        for y in range(height):
            if share == 1:
                _pasted_row(to, y, own, other, box, frame, norm, like, channels)
            else:
                _view_span(to, 0, width, y, own, frame, plain, like, channels)
                _view_span(second.ctypes.data, 0, width, y, other, frame, plain, like, channels)
                _blend(row, second, share)
                _affine_span(to, second.ctypes.data, norm, 4, share, channels, width, False)
            if out.itemsize == 2:
                _bfloat16(half, row.view(np.uint32))
            place = out.ctypes.data + (n * height + y) * pixels * out.itemsize
            _write_row(place, source, pixels * out.itemsize, stream)


@jit
def _add_span(to, read, table, like, channels, width, flip):  # type: ignore[no-untyped-def]
    """Adds `width` float32 pixels at `read`, times both rows of the table, to those at `to`; reversed if `flip`."""
    pixel = 4 * len(channels)
    blocks = width // PIXELS * PIXELS
    for x in range(0, blocks, PIXELS):
        if flip:
            affine_pixels(to + (width - PIXELS - x) * pixel, read + x * pixel, table, like, channels, PIXELS, 1, 1)
        else:
            affine_pixels(to + x * pixel, read + x * pixel, table, like, channels, PIXELS, 0, 1)
    for x in range(blocks, width):
        place = width - 1 - x if flip else x
        affine_pixels(to + place * pixel, read + x * pixel, table, like, channels, 1, 0, 1)


@jit
def _add_row(out, gradient, i, y, low, high, view, frame, table, like, channels):  # type: ignore[no-untyped-def]
    """What columns low to high of output row y of sample i pass on to the image at `out`, seen through `view`."""
    height, width = frame
    dy, dx, flip = view
    first, stop = _clipped(low, high, y + dy, dx, height, width)
    start = width - stop - dx if flip else first + dx
    pixel = 4 * len(channels)
    read = gradient + ((i * height + y) * width + first) * pixel
    _add_span(out + ((y + dy) * width + start) * pixel, read, table, like, channels, stop - first, flip)


@jit
def adjoint(gradient, geometry, colour, users, edges, table, channels, out, start, stop):  # type: ignore[no-untyped-def]
    """Images start to stop of `out` [N,H,W,C], zero before: gradient of `forward`; users[edges[j]:edges[j + 1]]
    are the samples whose partner is j. Every image is written by one thread: no atomics, the same sum every time.
    """
    height, width, count = gradient.shape[1:]
    frame, like, read, plan = (height, width), np.float32(0), gradient.ctypes.data, table.ctypes.data
    for j in range(start, stop):
        view = (np.int64(geometry[j, 0]), np.int64(geometry[j, 1]), np.int64(geometry[j, 2]))
        to = out.ctypes.data + j * height * width * count * 4
        table[1, :] = colour[j, count]
        for y in range(height):
            a, b = (geometry[j, 6], geometry[j, 7]) if geometry[j, 4] <= y < geometry[j, 5] else (0, 0)
            _add_row(to, read, j, y, 0, a, view, frame, plan, like, channels)
            _add_row(to, read, j, y, b, width, view, frame, plan, like, channels)
        for i in users[edges[j] : edges[j + 1]]:
            blends = colour[i, count] != 1
            table[1, :] = np.float32(1) - colour[i, count] if blends else np.float32(1)
            top, bottom = (0, height) if blends else (geometry[i, 4], geometry[i, 5])
            left, right = (0, width) if blends else (geometry[i, 6], geometry[i, 7])
            for y in range(top, bottom):
                _add_row(to, read, i, y, left, right, view, frame, plan, like, channels)

"""The row program: puts every row of an output image together from spans of input pixels and writes it once.

A row is: fill | visible span | fill of the own view, cut open where the box is for the partner's. The spans are
decided by the parameters, so that no pixel asks where it comes from. They are walked in blocks of pixels, by address:
`vectors`. A block of the row that lies in one span goes to memory at once, past the caches if there is much to write;
the blocks that spans cut are put together in a row in the first cache.
"""

import numpy as np

from fastaug.ops.crop_mix.cpu.compiler import entry, inlined
from fastaug.ops.crop_mix.cpu.memory import LINE
from fastaug.ops.crop_mix.cpu.vectors import ADD, PIXELS, PLAIN, STREAM, affine_pixels, copy_bytes, prefetch


@inlined
def _blocks(place, low, high):  # type: ignore[no-untyped-def]
    """Columns of the whole blocks in a span of PIXELS or more: any if `place` is 0, else those that start at one."""
    start = -(-low // PIXELS) * PIXELS if place else low
    return start, start + (high - start) // PIXELS * PIXELS


@inlined
def _affine_block(to, x, span, table, size, like, channels, flip, stream):  # type: ignore[no-untyped-def]
    """Block of columns from x on of a span: low, high, and the address of its pixels."""
    low, high, read = span
    pixel = size * len(channels)
    to, read = to + x * 4 * len(channels), read + (high - PIXELS - x if flip else x - low) * pixel
    prefetch(read)
    if flip and stream:
        affine_pixels(to, read, table, like, channels, PIXELS, 1, STREAM)
    elif flip:
        affine_pixels(to, read, table, like, channels, PIXELS, 1, PLAIN)
    elif stream:
        affine_pixels(to, read, table, like, channels, PIXELS, 0, STREAM)
    else:
        affine_pixels(to, read, table, like, channels, PIXELS, 0, PLAIN)


@inlined
def _affine_span(row, place, low, high, read, table, size, like, channels, flip):  # type: ignore[no-untyped-def]
    """Columns low to high of `row`, float32, from pixels at address `read`, times scale plus bias; reversed if `flip`.

    Whole blocks go past the caches to the same columns at `place`, unless that is 0.
    """
    if high - low < PIXELS:
        for x in range(low, high):
            source = read + (high - 1 - x if flip else x - low) * size * len(channels)
            affine_pixels(row + x * 4 * len(channels), source, table, like, channels, 1, 0, PLAIN)
        return
    span = low, high, read
    start, stop = _blocks(place, low, high)
    if start > low:
        _affine_block(row, low, span, table, size, like, channels, flip, False)
    for step in range(start, stop, PIXELS):
        x = start + stop - PIXELS - step if flip else step  # read upwards: hardware prefetches no other way
        if place:
            _affine_block(place, x, span, table, size, like, channels, flip, True)
        else:
            _affine_block(row, x, span, table, size, like, channels, flip, False)
    if stop < high:
        _affine_block(row, high - PIXELS, span, table, size, like, channels, flip, False)


@inlined
def _copy_block(to, read, channels, stream):  # type: ignore[no-untyped-def]
    """A block of float32 pixels."""
    for b in range(0, LINE * len(channels), LINE):
        if stream:
            copy_bytes(to + b, read + b, LINE, STREAM)
        else:
            copy_bytes(to + b, read + b, LINE, PLAIN)


@inlined
def _fill_span(row, place, low, high, read, channels):  # type: ignore[no-untyped-def]
    """The same of a block of equal pixels, float32, at address `read`."""
    count = len(channels)
    if high - low < PIXELS:
        for e in range(low * count, high * count):
            copy_bytes(row + 4 * e, read + 4 * (e % count), 4, PLAIN)
        return
    start, stop = _blocks(place, low, high)
    if start > low:
        _copy_block(row + 4 * count * low, read, channels, False)
    for x in range(start, stop, PIXELS):
        if place:
            _copy_block(place + 4 * count * x, read, channels, True)
        else:
            _copy_block(row + 4 * count * x, read, channels, False)
    if stop < high:
        _copy_block(row + 4 * count * (high - PIXELS), read, channels, False)


@inlined
def _clipped(low, high, line, dx, height, width):  # type: ignore[no-untyped-def]
    """First and last + 1 of the columns low to high in which a view shows its image."""
    first = min(max(low, -dx), high)
    stop = max(min(high, width - dx), first)
    return (first, stop) if 0 <= line < height else (high, high)


@inlined
def _ragged(x):  # type: ignore[no-untyped-def]
    """A bit for the block that an edge of a span at column x cuts, if it cuts one."""
    return np.uint64(x % PIXELS != 0) << np.uint64(x // PIXELS)


@inlined
def _view_span(row, place, low, high, y, view, frame, table, like, channels):  # type: ignore[no-untyped-def]
    """Columns low to high of row y of a view: image and fill addresses, dy, dx, flip. Returns the blocks it cuts."""
    image, fill, dy, dx, flip = view
    height, width, size = frame
    first, stop = _clipped(low, high, y + dy, dx, height, width)
    _fill_span(row, place, low, first, fill, channels)
    _fill_span(row, place, stop, high, fill, channels)
    start = width - stop - dx if flip else first + dx
    read = image + ((y + dy) * width + start) * size * len(channels)
    _affine_span(row, place, first, stop, read, table, size, like, channels, flip)
    return _ragged(low) | _ragged(first) | _ragged(stop) | _ragged(high)


@inlined
def _write_row(to, read, size, stream):  # type: ignore[no-untyped-def]
    """`size` bytes of a finished row to memory; the size is even."""
    head = min(-to % LINE, size) if stream else 0
    lines = (size - head) // LINE
    for b in range(0, head, 2):
        copy_bytes(to + b, read + b, 2, PLAIN)
    for b in range(head, head + lines * LINE, LINE):
        if stream:
            copy_bytes(to + b, read + b, LINE, STREAM)
        else:
            copy_bytes(to + b, read + b, LINE, PLAIN)
    for b in range(head + lines * LINE, size, 2):
        copy_bytes(to + b, read + b, 2, PLAIN)


@inlined
def _write_blocks(to, read, blocks, channels):  # type: ignore[no-untyped-def]
    """The blocks of a row that spans cut, each where its bit is set, to memory."""
    offset = 0
    while blocks:
        if blocks & np.uint64(1):
            _copy_block(to + offset, read + offset, channels, True)
        blocks >>= np.uint64(1)
        offset += LINE * len(channels)


@inlined
def _bfloat16(half, row):  # type: ignore[no-untyped-def]
    """Rounds float32 `row`, seen as uint32, to the bits of bfloat16 in `half`: nearest even, NaN stays NaN."""
    for e in range(np.uint64(len(half))):
        word = row[e]
        up = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        half[e] = np.uint32(0x7FC0) if (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else up


@inlined
def _blend(row, second, share):  # type: ignore[no-untyped-def]
    """second := row * share + second * (1 - share)."""
    rest = np.float32(1) - share
    for e in range(np.uint64(len(row))):
        second[e] = row[e] * share + second[e] * rest


@inlined
def _view(images, n, geometry, colour, table, fill):  # type: ignore[no-untyped-def]
    """What `_view_span` needs to know of sample n; writes its block of fill pixels."""
    _, height, width, count = images.shape
    for e in range(len(fill)):
        fill[e] = colour[n, e % count] * table[0, e] + table[1, e]
    image = images.ctypes.data + n * height * width * count * images.itemsize
    dy, dx, flip = np.int64(geometry[n, 0]), np.int64(geometry[n, 1]), np.int64(geometry[n, 2])
    return np.int64(image), np.int64(fill.ctypes.data), dy, dx, flip


@inlined
def _pasted_row(row, place, y, own, other, box, frame, table, like, channels):  # type: ignore[no-untyped-def]
    """Row y of a sample without a blend, normalised; returns the blocks that are left in `row`."""
    top, bottom, left, right = box
    a, b = (left, right) if top <= y < bottom else (0, 0)
    cut = _view_span(row, place, np.int64(0), a, y, own, frame, table, like, channels)
    cut |= _view_span(row, place, a, b, y, other, frame, table, like, channels)
    return cut | _view_span(row, place, b, frame[1], y, own, frame, table, like, channels)


@entry
def forward(images, geometry, colour, tables, channels, out, stream, work, start, stop):  # type: ignore[no-untyped-def]
    """Samples start to stop: images [N,H,W,C] -> out [N,H,W,C], float32 as uint32 or bfloat16 as uint16.

    tables: normalising and neutral. work: two rows float32, two blocks of fill, a row uint16; all belong to the
    caller, because numba frees an array of its own after the last line that names it, addresses or not.
    Addresses and columns are made int64, for numba compiles a function once more for every other type that it gets.
    """
    height, width, count = images.shape[1:]
    frame, like, size = (height, width, images.itemsize), images[0, 0, 0, 0], width * count * out.itemsize
    row, second, fill, other_fill, half = work
    to, under = np.int64(row.ctypes.data), np.int64(second.ctypes.data)
    norm, plain = np.int64(tables[0].ctypes.data), np.int64(tables[1].ctypes.data)
    source = np.int64(half.ctypes.data) if out.itemsize == 2 else to
    first, unflipped, wide = np.int64(0), np.int64(0), np.int64(4)
    aligned = out.ctypes.data % LINE == 0 and width % PIXELS == 0 and width <= 64 * PIXELS  # bits of a word
    for n in range(start, stop):
        share = colour[n, count]
        own = _view(images, n, geometry, colour, tables[int(share != 1)], fill)
        other = _view(images, np.int64(geometry[n, 3]), geometry, colour, tables[int(share != 1)], other_fill)
        box = (geometry[n, 4], geometry[n, 5], geometry[n, 6], geometry[n, 7])
        for y in range(height):
            place = np.int64(out.ctypes.data) + (n * height + y) * size
            if share == 1 and out.itemsize == 4 and not stream:
                _pasted_row(place, 0, y, own, other, box, frame, norm, like, channels)
                continue
            if share == 1 and out.itemsize == 4 and aligned:
                cut = _pasted_row(to, place, y, own, other, box, frame, norm, like, channels)
                _write_blocks(place, to, cut, channels)
                continue
            if share == 1:
                _pasted_row(to, 0, y, own, other, box, frame, norm, like, channels)
            else:
                _view_span(to, 0, first, width, y, own, frame, plain, like, channels)
                _view_span(under, 0, first, width, y, other, frame, plain, like, channels)
                _blend(row, second, share)
                _affine_span(to, 0, first, width, under, norm, wide, share, channels, unflipped)
            if out.itemsize == 2:
                _bfloat16(half, row.view(np.uint32))
            _write_row(place, source, size, stream)


@inlined
def _add_span(to, read, table, like, channels, width, flip):  # type: ignore[no-untyped-def]
    """Adds `width` float32 pixels at `read`, times both rows of the table, to those at `to`; reversed if `flip`."""
    pixel = 4 * len(channels)
    blocks = width // PIXELS * PIXELS
    for x in range(0, blocks, PIXELS):
        if flip:
            affine_pixels(to + (width - PIXELS - x) * pixel, read + x * pixel, table, like, channels, PIXELS, 1, ADD)
        else:
            affine_pixels(to + x * pixel, read + x * pixel, table, like, channels, PIXELS, 0, ADD)
    for x in range(blocks, width):
        place = width - 1 - x if flip else x
        affine_pixels(to + place * pixel, read + x * pixel, table, like, channels, 1, 0, ADD)


@inlined
def _add_row(out, gradient, y, low, high, view, frame, table, like, channels):  # type: ignore[no-untyped-def]
    """What columns low to high of output row y pass on to the image at `out`, seen through `view`.

    gradient: address of the row's gradient.
    """
    height, width = frame
    dy, dx, flip = view
    first, stop = _clipped(low, high, y + dy, dx, height, width)
    start = width - stop - dx if flip else first + dx
    pixel = 4 * len(channels)
    read = gradient + first * pixel
    _add_span(out + ((y + dy) * width + start) * pixel, read, table, like, channels, stop - first, flip)


@entry
def adjoint(gradient, geometry, colour, users, edges, table, channels, out, start, stop):  # type: ignore[no-untyped-def]
    """Gradient of `forward` in images start to stop of `out` [N,H,W,C], which is zero before.

    users[edges[j]:edges[j + 1]] are the samples whose partner is j. Every image is written by one thread: no atomics,
    the same sum every time.
    """
    height, width, count = gradient.shape[1:]
    frame, like, read, plan = (height, width), np.float32(0), gradient.ctypes.data, table.ctypes.data
    size = width * count * 4
    for j in range(start, stop):
        view = (np.int64(geometry[j, 0]), np.int64(geometry[j, 1]), np.int64(geometry[j, 2]))
        to = out.ctypes.data + j * height * size
        table[1, :] = colour[j, count]
        for y in range(height):
            line = read + (j * height + y) * size
            a, b = (geometry[j, 6], geometry[j, 7]) if geometry[j, 4] <= y < geometry[j, 5] else (0, 0)
            _add_row(to, line, y, 0, a, view, frame, plan, like, channels)
            _add_row(to, line, y, b, width, view, frame, plan, like, channels)
        for i in users[edges[j] : edges[j + 1]]:
            blends = colour[i, count] != 1
            table[1, :] = np.float32(1) - colour[i, count] if blends else np.float32(1)
            top, bottom = (0, height) if blends else (geometry[i, 4], geometry[i, 5])
            left, right = (0, width) if blends else (geometry[i, 6], geometry[i, 7])
            for y in range(top, bottom):
                _add_row(to, read + (i * height + y) * size, y, left, right, view, frame, plan, like, channels)

"""Vector instructions for numba code: blocks of pixels loaded, reversed, normalised and stored, by address.

Written as LLVM vectors of any length for any CPU. A compiler finds neither the reversal of pixels nor stores past the
caches by itself; and arrays that numba hands on cost atomic reference counts, more than a row of pixels does.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastaug.ops.crop_mix.cpu.memory import LINE

PIXELS = 16  # pixels in a block: 48 bytes of RGB fit one AVX-512 register, 48 floats fill three
PREFETCH_DISTANCE = 4096  # bytes from a block of pixels to the cache line that is asked for meanwhile
PLAIN, ADD, STREAM = range(3)  # ways to store

FLOAT, INDEX = ir.FloatType(), ir.IntType(32)


def _at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _reversed(builder: Any, vector: Any, count: int, pixels: int) -> Any:
    """The pixels of a vector in reverse order, their channels as they were."""
    order = [count * (pixels - 1 - e // count) + e % count for e in range(count * pixels)]
    mask = ir.Constant(ir.VectorType(INDEX, len(order)), order)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _store(builder: Any, value: Any, place: Any, align: int, stream: bool) -> None:
    """Stores a vector; with `stream` past the caches (no read of the line first) to whole cache lines."""
    store = builder.store(value, place, align=LINE if stream else align)
    if stream:
        store.set_metadata("nontemporal", builder.module.add_metadata([INDEX(1)]))


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
    mode: Any,
) -> Any:
    """float32 at `target` := x * scale + bias, for pixels x of like's type at `source`; reversed if `reverse`.

    table: address of scale, then bias, float32, each repeated for a whole block of pixels. channels: any tuple of C
    values. pixels, reverse, mode: literals. mode STREAM: past the caches to a target that starts a cache line; ADD:
    target := target + x * scale * bias.
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
        if mode.literal_value == ADD:
            x = builder.fadd(builder.load(place, align=4), builder.fmul(x, second))
        else:
            x = builder.fadd(x, second)
        _store(builder, x, place, 4, mode.literal_value == STREAM)
        return context.get_dummy_value()

    return types.void(target, source, table, like, channels, pixels, reverse, mode), generate


@intrinsic(prefer_literal=True)
def copy_bytes(_context: Any, target: Any, source: Any, size: Any, mode: Any) -> Any:
    """Copies `size` bytes; mode STREAM: past the caches to whole cache lines."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), size.literal_value)
        value = builder.load(_at(builder, args[1], kind), align=1)
        _store(builder, value, _at(builder, args[0], kind), 1, mode.literal_value == STREAM)
        return context.get_dummy_value()

    return types.void(target, source, size, mode), generate


@intrinsic
def prefetch(_context: Any, address: Any) -> Any:
    """Asks for the cache line PREFETCH_DISTANCE after the address, which may belong to nobody."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = _at(builder, builder.add(args[0], ir.Constant(args[0].type, PREFETCH_DISTANCE)), ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, INDEX, INDEX, INDEX])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, INDEX(0), INDEX(3), INDEX(1)])  # to read, to every cache, data
        return context.get_dummy_value()

    return types.void(address), generate

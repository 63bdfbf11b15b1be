"""Blocks of pixels as LLVM vectors inside numba, by address: what a compiler does not find in loops by itself.

LLVM lowers vectors of any length for any CPU. Addresses instead of arrays, because every array that numba hands on
costs atomic reference counts, more than a row of pixels does.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

PIXELS = 16  # pixels in a block: 48 bytes of RGB fit one AVX-512 register, 48 floats fill three
LINE = 64  # bytes of a cache line

FLOAT, INDEX = ir.FloatType(), ir.IntType(32)


def _at(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _repeated(builder: Any, values: Any, count: int, pixels: int) -> Any:
    """The `count` channel values of a tuple, repeated for every pixel: one vector."""
    vector = ir.Constant(ir.VectorType(FLOAT, count), ir.Undefined)
    for c in range(count):
        vector = builder.insert_element(vector, builder.extract_value(values, c), INDEX(c))
    order = ir.Constant(ir.VectorType(INDEX, count * pixels), [e % count for e in range(count * pixels)])
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), order)


def _reversed(builder: Any, vector: Any, count: int, pixels: int) -> Any:
    """The pixels of a vector in reverse order, their channels as they were."""
    order = [count * (pixels - 1 - e // count) + e % count for e in range(count * pixels)]
    mask = ir.Constant(ir.VectorType(INDEX, len(order)), order)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


@intrinsic(prefer_literal=True)
def affine_pixels(
    _context: Any, target: Any, source: Any, like: Any, scale: Any, bias: Any, pixels: Any, reverse: Any, add: Any
) -> Any:
    """float32 at `target` := x * scale + bias, for pixels x of like's type at `source`; reversed if `reverse`.

    scale and bias are tuples of a value per channel; pixels, reverse and add literals. With `add`: target :=
    target + x * scale * bias.
    """
    count, block = scale.count, pixels.literal_value
    integer = isinstance(like, types.Integer)
    kind = ir.IntType(like.bitwidth) if integer else FLOAT

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x = builder.load(_at(builder, args[1], ir.VectorType(kind, count * block)), align=1)
        if reverse.literal_value:
            x = _reversed(builder, x, count, block)
        out = ir.VectorType(FLOAT, count * block)
        x = builder.uitofp(x, out) if integer else x
        x = builder.fmul(x, _repeated(builder, args[3], count, block))
        second = _repeated(builder, args[4], count, block)
        place = _at(builder, args[0], out)
        if add.literal_value:
            x = builder.fadd(builder.load(place, align=4), builder.fmul(x, second))
        else:
            x = builder.fadd(x, second)
        builder.store(x, place, align=4)
        return context.get_dummy_value()

    return types.void(target, source, like, scale, bias, pixels, reverse, add), generate


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

"""Two loops that a compiler does not vectorise by itself, as LLVM vector instructions inside numba; any CPU."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

PIXELS = 16  # pixels reversed at a time
LINE = 64  # bytes of a cache line


def _vector(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def reverse_block(_context: Any, target: Any, source: Any, like: Any, channels: Any) -> Any:
    """Copies 16 pixels from address `source` to `target` in reverse order; like: array of the type, channels: tuple."""
    kind = ir.IntType(like.dtype.bitwidth)
    count = channels.count
    order = [count * (PIXELS - 1 - e // count) + e % count for e in range(PIXELS * count)]

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        block = ir.VectorType(kind, PIXELS * count)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
        read = builder.load(_vector(builder, args[1], block), align=1)
        turned = builder.shuffle_vector(read, ir.Constant(block, ir.Undefined), mask)
        builder.store(turned, _vector(builder, args[0], block), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, like, channels), generate


@intrinsic
def stream_line(_context: Any, target: Any, source: Any) -> Any:
    """Copies 64 bytes to the aligned address `target` past the caches: the line is not read first."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4)
        store = builder.store(
            builder.load(_vector(builder, args[1], line), align=1), _vector(builder, args[0], line), align=LINE
        )
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate

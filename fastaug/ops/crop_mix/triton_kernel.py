"""The op and its adjoint as Triton kernels for CUDA: one load and one store per output element.

A program writes a few rows of one sample's memory [H,W,C], `BLOCK` elements of each. All that depends on the column
alone is worked out before the rows are walked, all that depends on the row alone is a scalar. Each element is loaded
from the one image it shows, so the batch is read once. Products and sums are not contracted into FMA: results equal
the reference to the bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastaug.ops.crop_mix.params import partner_users

ROWS = 16  # rows of a program
ELEMENTS = 64  # of a row, of a warp


@triton.jit
def _pick(c, values: tl.constexpr, C: tl.constexpr, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """values[c]; constants, chosen rather than loaded."""
    out = tl.full(c.shape, values[0], kind)
    for i in tl.static_range(1, C):
        out = tl.where(c == i, tl.full(c.shape, values[i], kind), out)
    return out


@triton.jit
def _columns(geometry, n, x, c, live, strides, W: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns in which the view of image n shows it at x, and the offset of what it reads there in its row."""
    column = x + tl.load(geometry + n * 8 + 1)
    inside = live & (column >= 0) & (column < W)
    column = tl.where(tl.load(geometry + n * 8 + 2) != 0, W - 1 - column, column)
    return inside, column * strides[2] + c * strides[3]


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    images,
    geometry,
    colour,
    out,
    strides,
    scale: tl.constexpr,
    bias: tl.constexpr,
    size: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Elements program_id(0) * BLOCK of rows program_id(1) * ROWS of sample program_id(2): out [N,H,W,C] contiguous.

    size: H, W, C.
    """
    H: tl.constexpr = size[0]
    W: tl.constexpr = size[1]
    C: tl.constexpr = size[2]
    n = tl.program_id(2)
    kind: tl.constexpr = colour.dtype.element_ty
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, c, live = e // C, e % C, e < W * C
    partner = tl.load(geometry + n * 8 + 3)
    inside, offset = _columns(geometry, n, x, c, live, strides, W)
    inside2, offset2 = _columns(geometry, partner, x, c, live, strides, W)
    fill, fill2 = tl.load(colour + n * (C + 1) + c), tl.load(colour + partner * (C + 1) + c)
    dy, dy2 = tl.load(geometry + n * 8), tl.load(geometry + partner * 8)
    top, bottom = tl.load(geometry + n * 8 + 4), tl.load(geometry + n * 8 + 5)
    across = (x >= tl.load(geometry + n * 8 + 6)) & (x < tl.load(geometry + n * 8 + 7))
    share = tl.load(colour + n * (C + 1) + C)
    factor, shift = _pick(c, scale, C, kind), _pick(c, bias, C, kind)
    own, other = images + n.to(tl.int64) * strides[0], images + partner.to(tl.int64) * strides[0]
    first = tl.program_id(1) * ROWS
    for y in range(first, min(first + ROWS, H)):
        line, line2 = y + dy, y + dy2
        shows, shows2 = inside & (line >= 0) & (line < H), inside2 & (line2 >= 0) & (line2 < H)
        place, place2 = own + line * strides[1] + offset, other + line2 * strides[1] + offset2
        box = across & (y >= top) & (y < bottom)
        seen = tl.where(box, shows2, shows)
        value = tl.load(tl.where(box, place2, place), mask=seen, other=0).to(kind)
        value = tl.where(seen, value, tl.where(box, fill2, fill))
        if share != 1:
            value2 = tl.load(place2, mask=shows2, other=0).to(kind)
            value = value * share + tl.where(shows2, value2, fill2) * (1 - share)
        value = value * factor + shift
        if out.dtype.element_ty.primitive_bitwidth == 16:  # as torch does, by way of float32
            value = value.to(tl.float32)
        tl.store(out + (n.to(tl.int64) * H + y) * (W * C) + e, value.to(out.dtype.element_ty), mask=live)


@triton.jit
def adjoint_kernel(  # type: ignore[no-untyped-def]
    gradient,
    geometry,
    colour,
    users,
    edges,
    out,
    scale: tl.constexpr,
    size: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The same cut of image program_id(2), gathered: nothing is added atomically, sums keep their order.

    Gradients [N,H,W,C] contiguous. The samples that image j is a partner of are users[edges[j]:edges[j + 1]].
    """
    H: tl.constexpr = size[0]
    W: tl.constexpr = size[1]
    C: tl.constexpr = size[2]
    j = tl.program_id(2)
    kind: tl.constexpr = colour.dtype.element_ty
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column, c, live = e // C, e % C, e < W * C
    x = tl.where(tl.load(geometry + j * 8 + 2) != 0, W - 1 - column, column) - tl.load(geometry + j * 8 + 1)
    inside, offset = live & (x >= 0) & (x < W), x * C + c
    factor, dy = _pick(c, scale, C, kind), tl.load(geometry + j * 8)
    first = tl.program_id(1) * ROWS
    for line in range(first, min(first + ROWS, H)):
        y = line - dy
        shows = inside & (y >= 0) & (y < H)
        box = _in_box(geometry, j, y, x)
        read = gradient + (j.to(tl.int64) * H + y) * (W * C) + offset
        own = tl.load(read, mask=shows & (box == 0), other=0).to(kind)
        total = own * factor * tl.load(colour + j * (C + 1) + C)
        for at in range(tl.load(edges + j), tl.load(edges + j + 1)):
            i = tl.load(users + at)
            weight = tl.where(_in_box(geometry, i, y, x), 1, 1 - tl.load(colour + i * (C + 1) + C)).to(kind)
            read = gradient + (i.to(tl.int64) * H + y) * (W * C) + offset
            total += tl.load(read, mask=shows & (weight != 0), other=0).to(kind) * factor * weight
        tl.store(out + (j.to(tl.int64) * H + line) * (W * C) + e, total.to(out.dtype.element_ty), mask=live)


@triton.jit
def _in_box(geometry, n, y, x):  # type: ignore[no-untyped-def]
    """Whether (y, x) is in the box of sample n."""
    across = (x >= tl.load(geometry + n * 8 + 6)) & (x < tl.load(geometry + n * 8 + 7))
    return across & (y >= tl.load(geometry + n * 8 + 4)) & (y < tl.load(geometry + n * 8 + 5))


def forward(
    images: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], bias: Sequence[float], out: Tensor
) -> None:
    """images [N,H,W,C] uint8 or float, any strides -> out [N,H,W,C] contiguous; see `CropMixParams.packed`."""
    grid, options = launch(tuple(images.shape))
    forward_kernel[grid](
        images, geometry, colour, out, images.stride(), scale=tuple(scale), bias=tuple(bias), **options
    )


def adjoint(gradient: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Gradient [N,H,W,C] in the output -> gradient in the images, `dtype`, contiguous."""
    gradient = gradient.contiguous()
    out = torch.empty_like(gradient, dtype=dtype)
    users, edges = partner_users(geometry[:, 3])
    grid, options = launch(tuple(gradient.shape))
    adjoint_kernel[grid](gradient, geometry, colour, users, edges, out, scale=tuple(scale), **options)
    return out


def launch(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Grid and compile-time constants for [N,H,W,C]. No fused multiply-add: the definition rounds twice."""
    n, height, width, channels = shape
    row = width * channels
    block = min((256, 128), key=lambda size: triton.cdiv(row, size) * size)
    options = {"size": (height, width, channels), "BLOCK": block, "ROWS": ROWS}
    grid = (triton.cdiv(row, block), triton.cdiv(height, ROWS), n)
    return grid, {**options, "num_warps": block // ELEMENTS, "enable_fp_fusion": False}

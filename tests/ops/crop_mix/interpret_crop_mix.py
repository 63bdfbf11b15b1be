"""Run by test_triton_kernel in a process of its own: the Triton kernels, interpreted on CPU tensors.

Its arguments are the KINDS that every named case is tried with. Prints JSON: what is wrong with each named case
(nothing: an empty text), and the bytes moved.

Interpreting is decided where a kernel is decorated, so TRITON_INTERPRET has to be set before the import.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from triton.runtime import interpreter

from fastaug.ops.crop_mix import CropMixParams, Sampling, identity_params, sample_crop_mix
from fastaug.ops.crop_mix import triton_kernel as kernel
from fastaug.ops.crop_mix.reference import (
    adjoint_reference,
    compute_dtype,
    crop_mix_reference,
    normaliser,
    view_index,
)
from fastaug.seeding import Key

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def compare(
    images: torch.Tensor, params: CropMixParams, dtype: torch.dtype, gradient: torch.Tensor, repeat: bool = False
) -> None:
    """Forward and adjoint against the definition, into memory full of NaN; images and gradient [N,H,W,C]."""
    _, h, w, c = images.shape
    scale, bias = normaliser(MEAN[:c], STD[:c], True)
    geometry, colour = params.packed(h, w, compute_dtype(images.dtype, dtype))
    want = crop_mix_reference(images, params, scale, bias, dtype).permute(0, 2, 3, 1)
    got = torch.full(images.shape, float("nan"), dtype=dtype)
    kernel.forward(images, geometry, colour, scale, bias, got)
    ulp = torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 0.0  # the interpreter cuts, does not round
    torch.testing.assert_close(got, want, rtol=ulp, atol=0)
    want = adjoint_reference(gradient.to(colour.dtype), params, scale)
    got = kernel.adjoint(gradient, geometry, colour, scale, colour.dtype)  # deterministic torch fills it with NaN
    torch.testing.assert_close(got, want, rtol=1e-6 if repeat else 4 * torch.finfo(colour.dtype).eps, atol=1e-8)


def pixels(shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=kind) if kind == torch.uint8 else torch.rand(shape).to(kind)


def drawn(n: int, h: int, w: int, c: int = 3, seed: int = 0) -> CropMixParams:
    sampling = Sampling(0.4, fill="random", mixup=0.8, cutmix=1.0, mixup_switch_prob=0.7, mixup_mode="elem")
    return sample_crop_mix(Key(seed, 1, 0), range(n), (h, w), sampling, mean=MEAN[:c], std=STD[:c], white=255.0)


def drawn_case(shape: tuple[int, int, int, int], kind: torch.dtype, dtype: torch.dtype, seed: int) -> None:
    """Drawn parameters; floats in NCHW memory, as the kernel takes strides as they are."""
    n, h, w, c = shape
    images, repeat = pixels(shape, kind), seed % 3 == 2
    if kind != torch.uint8:
        images = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    params = drawn(n, h, w, c, seed)
    if repeat:
        params = replace(params, partner=params.partner // 2)
    compare(images, params, dtype, torch.randn(shape, dtype=torch.float64).to(dtype), repeat)


def with_box(params: CropMixParams, *box: int) -> CropMixParams:
    return replace(params, box=torch.tensor([box]).expand(len(params), 4))


def out_of_view(params: CropMixParams, h: int, w: int) -> CropMixParams:
    """Each sample just out of view on another side, the last one far away."""
    dy, dx = torch.tensor([h, -h, 0, 0, 2**40]), torch.tensor([0, 0, w, -w, -(2**40)])
    return replace(params, dy=dy[: len(params)], dx=dx[: len(params)])


# name: ([N,H,W,C], what becomes of drawn parameters of that size)
CASES: dict[str, tuple[tuple[int, int, int, int], Callable[[CropMixParams], CropMixParams]]] = {
    "box is the whole image": ((4, 6, 9, 3), lambda p: with_box(p, 0, 6, 0, 9)),
    "box is empty": ((4, 6, 9, 3), lambda p: with_box(p, 3, 3, 2, 8)),
    "box is a pixel": ((4, 6, 9, 3), lambda p: with_box(p, 5, 6, 8, 9)),
    "all out of view": ((5, 6, 9, 3), lambda p: with_box(out_of_view(p, 6, 9), 0, 0, 0, 0)),
    "all out of view, boxes": ((5, 6, 9, 3), lambda p: with_box(out_of_view(p, 6, 9), 1, 5, 2, 9)),
    "partner is itself, box": ((4, 6, 9, 3), lambda p: replace(with_box(p, 1, 4, 0, 7), partner=torch.arange(4))),
    "partner is itself, blend": (
        (4, 6, 9, 3),
        lambda p: replace(with_box(p, 0, 0, 0, 0), partner=torch.arange(4), blend=torch.full((4,), 0.3)),
    ),
    "one partner for all": ((4, 6, 9, 3), lambda p: replace(p, partner=torch.full((4,), 2))),
    "one sample": ((1, 7, 7, 3), lambda p: p),
    "one pixel": ((2, 1, 1, 3), lambda p: p),
    "one column": ((3, 13, 1, 3), lambda p: p),
    "one row": ((3, 1, 90, 3), lambda p: p),
    "odd size": ((5, 7, 11, 3), lambda p: p),
    "wide": ((2, 5, 100, 3), lambda p: p),
    "tall": ((2, 17, 6, 3), lambda p: p),
    "one channel": ((3, 9, 13, 1), lambda p: p),
}
KINDS = {  # types of images and result, and whether their memory is contiguous
    "bytes to float32": (torch.uint8, torch.float32, True),
    "bytes to bfloat16, not contiguous": (torch.uint8, torch.bfloat16, False),
    "float32, not contiguous": (torch.float32, torch.float32, False),
    "float64": (torch.float64, torch.float64, True),
}


def every_other(shape: tuple[int, ...], make: Callable[[tuple[int, ...]], torch.Tensor]) -> torch.Tensor:
    """Memory where no two neighbours of [N,H,W,C] touch: every other row, column and channel of a larger one."""
    return make((shape[0], *(2 * size for size in shape[1:])))[:, ::2, ::2, ::2]


def named_case(name: str, kind: str) -> None:
    shape, change = CASES[name]
    (source, dtype, contiguous), (n, h, w, c) = KINDS[kind], shape
    make = (lambda shape, make: make(shape)) if contiguous else every_other
    images = make(shape, lambda s: pixels(s, source))
    gradient = make(shape, lambda s: torch.randn(s, dtype=torch.float64).to(dtype))
    assert images.is_contiguous() == contiguous
    compare(images, change(drawn(n, h, w, c)), dtype, gradient, repeat=name == "one partner for all")


def traffic(shape: tuple[int, int, int, int], params: CropMixParams) -> dict[str, float]:
    """Bytes at distinct addresses that the forward kernel loads and stores, and how often it loads a pixel byte."""
    loaded: dict[int, int] = {}
    builder = interpreter.interpreter_builder
    load, stored = builder.create_masked_load, []
    store = builder.create_masked_store

    def counted_load(ptrs: Any, mask: Any, *rest: Any) -> Any:
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        for address in np.asarray(ptrs.data)[np.asarray(mask.data, dtype=bool)].ravel().tolist():
            loaded[address] = size
            times[address] = times.get(address, 0) + 1
        return load(ptrs, mask, *rest)

    def counted_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        stored.append(np.asarray(mask.data).sum() * (ptrs.get_element_ty().primitive_bitwidth // 8))
        return store(ptrs, value, mask, *rest)

    times: dict[int, int] = {}
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    out = torch.empty(shape, dtype=torch.bfloat16)
    geometry, colour = params.packed(shape[1], shape[2], torch.float32)
    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    try:
        kernel.forward(images, geometry, colour, (1.0,) * 3, (0.0,) * 3, out)
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
    start = images.data_ptr()
    pixels = [k for a, k in times.items() if start <= a < start + images.numel()]
    return {
        "moved": float(sum(loaded.values()) + sum(stored)),
        "floor": float(images.numel() + 2 * out.numel()),
        "stored": float(sum(stored)),
        "most_loads_of_a_byte": float(max(pixels)),
        "pixel_bytes_loaded": float(len(pixels)),
    }


def wrong(run: Callable[[], None]) -> str:
    """What a case finds wrong, nothing if it passes."""
    try:
        run()
    except AssertionError as error:
        return str(error)
    return ""


def main() -> None:
    torch.use_deterministic_algorithms(True)  # new memory is NaN
    torch.manual_seed(0)
    named = itertools.product(CASES, sys.argv[1:])
    runs = {f"{name}, {kind}": partial(named_case, name, kind) for name, kind in named}
    shapes = [(1, 9, 5, 3), (5, 7, 11, 3), (4, 33, 50, 3), (3, 9, 13, 1), (2, 5, 100, 3)]
    kinds = [*(types[:2] for types in KINDS.values()), (torch.uint8, torch.float64), (torch.float32, torch.float16)]
    for seed, types in enumerate(itertools.islice(itertools.product(shapes, kinds), 0, None, 4)):
        runs[f"drawn {seed}"] = partial(drawn_case, types[0], *types[1], seed)
    failed = {name: wrong(run) for name, run in runs.items()}
    shape = (4, 64, 64, 3)
    still = traffic(shape, identity_params(4, torch.zeros(3)))
    sampling = Sampling(sigma=0.375, cutmix=1.0, mixup_mode="elem")
    params = sample_crop_mix(Key(0, 1, 0), range(4), shape[1:3], sampling)
    mixed = traffic(shape, params)
    mixed["in_view"] = float(view_index(params, *shape[1:3])[0].sum() * 3)
    json.dump({"failed": failed, "traffic": {"still": still, "mixed": mixed}}, sys.stdout)


if __name__ == "__main__":
    main()

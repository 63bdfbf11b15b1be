"""Run by test_crop_mix_kernel in a process of its own: the Triton kernels, interpreted on CPU tensors.

Interpreting is decided where a kernel is decorated, so TRITON_INTERPRET has to be set before the import.
"""

import itertools
import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from triton.runtime import interpreter

from fastaug.ops.crop_mix import CropMixParams, Sampling, identity_params, kernel, sample_crop_mix
from fastaug.ops.crop_mix.reference import (
    adjoint_reference,
    compute_dtype,
    crop_mix_reference,
    normaliser,
    view_index,
)
from fastaug.seeding import Key

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def compare(shape: tuple[int, int, int, int], kind: torch.dtype, dtype: torch.dtype, repeat: bool, seed: int) -> None:
    n, h, w, c = shape
    images = torch.randint(0, 256, shape, dtype=kind) if kind == torch.uint8 else torch.rand(shape).to(kind)
    if kind != torch.uint8:  # NCHW memory: the kernel takes strides as they are
        images = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    sampling = Sampling(0.4, fill="random", mixup=0.8, cutmix=1.0, mixup_switch_prob=0.7, mixup_mode="elem")
    params = sample_crop_mix(Key(seed, 1, 0), range(n), (h, w), sampling, mean=MEAN[:c], std=STD[:c], white=255.0)
    if repeat:
        params = CropMixParams(**{**vars(params), "partner": params.partner // 2})
    scale, bias = normaliser(MEAN[:c], STD[:c], True)
    geometry, colour = params.packed(h, w, compute_dtype(kind, dtype))
    want = crop_mix_reference(images, params, scale, bias, dtype).permute(0, 2, 3, 1)
    got = torch.full(shape, float("nan"), dtype=dtype)
    kernel.forward(images, geometry, colour, scale, bias, got)
    ulp = torch.finfo(torch.bfloat16).eps if dtype == torch.bfloat16 else 0.0  # the interpreter cuts, does not round
    torch.testing.assert_close(got, want, rtol=ulp, atol=0)
    gradient = torch.randn(shape, dtype=torch.float64).to(dtype)
    want = adjoint_reference(gradient.to(colour.dtype), params, scale)
    got = kernel.adjoint(gradient, geometry, colour, scale, colour.dtype)
    torch.testing.assert_close(got, want, rtol=1e-6 if repeat else 4 * torch.finfo(colour.dtype).eps, atol=1e-8)


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


def main() -> None:
    shapes = [(1, 1, 1, 3), (1, 9, 5, 3), (5, 7, 11, 3), (4, 33, 50, 3), (3, 9, 13, 1), (2, 5, 100, 3)]
    kinds = [(torch.uint8, torch.float32), (torch.uint8, torch.bfloat16), (torch.uint8, torch.float64)]
    kinds += [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.float32, torch.float16)]
    for case, (shape, (kind, dtype)) in enumerate(itertools.islice(itertools.product(shapes, kinds), 0, None, 2)):
        compare(shape, kind, dtype, repeat=case % 3 == 2, seed=case)
    shape = (4, 64, 64, 3)
    still = traffic(shape, identity_params(4, torch.zeros(3)))
    sampling = Sampling(sigma=0.375, cutmix=1.0, mixup_mode="elem")
    params = sample_crop_mix(Key(0, 1, 0), range(4), shape[1:3], sampling)
    mixed = traffic(shape, params)
    mixed["in_view"] = float(view_index(params, *shape[1:3])[0].sum() * 3)
    json.dump({"still": still, "mixed": mixed}, sys.stdout)


if __name__ == "__main__":
    main()

"""The operator `fastaug::crop_mix` as torch knows it: picks Triton, CPU or reference code, has gradients, compiles.

It is linear in the images, so its gradient is an operator of its own, `fastaug::crop_mix_adjoint`, whose gradient is
the op again without fill and bias: any order of differentiation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastaug.ops.crop_mix import cpu
from fastaug.ops.crop_mix.params import CropMixParams
from fastaug.ops.crop_mix.reference import adjoint_reference, compute_dtype, crop_mix_reference


def formulation(device: torch.device) -> str:
    """Which code runs on a device: "triton" on CUDA, "cpu" on a CPU, else "reference"."""
    return {"cuda": "triton", "cpu": "cpu"}.get(device.type, "reference")


def write_into(
    out: Tensor, images: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], bias: Sequence[float]
) -> None:
    """images [N,H,W,C] -> out [N,H,W,C] contiguous; `geometry`, `colour` as `CropMixParams.packed` on their device."""
    chosen = formulation(images.device)
    if len(images) == 0:
        return
    if chosen == "triton":
        from fastaug.ops.crop_mix import triton_kernel as kernel  # Triton is there where CUDA is

        kernel.forward(images, geometry, colour, scale, bias, out)
    elif chosen == "cpu":
        cpu.forward(images, geometry, colour, scale, bias, out)
    else:
        params = CropMixParams.unpacked(geometry, colour)
        out.copy_(crop_mix_reference(images, params, scale, bias, out.dtype).permute(0, 2, 3, 1))


@torch.library.custom_op("fastaug::crop_mix", mutates_args=())
def crop_mix_op(
    images: Tensor,
    geometry: Tensor,
    colour: Tensor,
    scale: Sequence[float],
    bias: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """images [N,H,W,C] uint8 or float -> [N,H,W,C] contiguous `dtype`."""
    on_cpu = formulation(images.device) == "cpu"
    out = cpu.empty(tuple(images.shape), dtype) if on_cpu else images.new_empty(images.shape, dtype=dtype)
    write_into(out, images, geometry, colour, scale, bias)
    return out


@torch.library.custom_op("fastaug::crop_mix_adjoint", mutates_args=())
def crop_mix_adjoint(
    gradient: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], dtype: torch.dtype
) -> Tensor:
    """Gradient [N,H,W,C] in the output -> gradient in images of type `dtype`, contiguous."""
    chosen = formulation(gradient.device)
    if chosen == "triton":
        from fastaug.ops.crop_mix import triton_kernel as kernel

        return kernel.adjoint(gradient, geometry, colour, scale, dtype)
    if chosen == "cpu":
        return cpu.adjoint(gradient, geometry, colour, scale, dtype)
    params = CropMixParams.unpacked(geometry, colour)
    return adjoint_reference(gradient.to(compute_dtype(gradient.dtype, dtype)), params, scale).to(dtype)


@crop_mix_op.register_fake
def _(images: Tensor, geometry: Tensor, colour: Tensor, scale: Any, bias: Any, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    return images.new_empty(images.shape, dtype=dtype)


@crop_mix_adjoint.register_fake
def _(gradient: Tensor, geometry: Tensor, colour: Tensor, scale: Any, dtype: torch.dtype) -> Tensor:  # noqa: ARG001
    return gradient.new_empty(gradient.shape, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    images, geometry, colour, scale = inputs[:4]
    ctx.save_for_backward(geometry, colour)
    ctx.scale, ctx.dtype = scale, images.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    geometry, colour = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0]
    image = crop_mix_adjoint(gradient, geometry, colour, ctx.scale, ctx.dtype) if wanted else None
    return image, None, None, None, None, None


def _adjoint_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    geometry, colour = ctx.saved_tensors
    bare = torch.cat([torch.zeros_like(colour[:, :-1]), colour[:, -1:]], 1)
    zeros = [0.0] * len(ctx.scale)
    return crop_mix_op(gradient, geometry, bare, ctx.scale, zeros, ctx.dtype), None, None, None, None


crop_mix_op.register_autograd(_backward, setup_context=_keep)
crop_mix_adjoint.register_autograd(_adjoint_backward, setup_context=_keep)

"""The op on a CPU: a row program compiled by numba; slices in torch without it, for float64 and n channels.

The program is compiled for each number of channels, which takes some seconds: for those of most images, 1 and 3.

What the op calls is here, and nothing else of this folder is for others. numba is imported when it is first needed.
"""

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fastaug.ops.crop_mix.cpu import slices
from fastaug.ops.crop_mix.cpu.memory import empty
from fastaug.ops.crop_mix.params import CropMixParams
from fastaug.ops.crop_mix.reference import adjoint_reference, compute_dtype
from fastaug.ops.crop_mix.soften import Soften

__all__ = ["adjoint", "empty", "forward", "has_numba", "masses", "uses_numba"]

COMPILED = (1, 3)  # channels


@functools.cache
def has_numba() -> bool:
    """Whether numba is installed; warns once if it is not."""
    try:
        import numba  # noqa: F401

        return True
    except ImportError:
        warnings.warn("numba is not installed: crop_mix copies slices on the CPU, some ten times slower", stacklevel=2)
        return False


def uses_numba(dtype: torch.dtype) -> bool:
    """Whether arithmetic of this type is compiled: float32, where numba is installed."""
    return dtype == torch.float32 and has_numba()


def forward(
    images: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], bias: Sequence[float], out: Tensor
) -> None:
    """images [N,H,W,C] uint8 or float -> out [N,H,W,C] contiguous, floating; see `CropMixParams.packed`."""
    if images.shape[-1] in COMPILED and uses_numba(compute_dtype(images.dtype, out.dtype)):
        from fastaug.ops.crop_mix.cpu import launch

        launch.forward(images, geometry, colour, scale, bias, out)
    else:
        slices.forward(images, geometry, colour, scale, bias, out)


def adjoint(gradient: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Gradient [N,H,W,C] in the output -> gradient in the images, `dtype`, contiguous."""
    kind = compute_dtype(gradient.dtype, dtype)
    if gradient.shape[-1] in COMPILED and uses_numba(kind):
        from fastaug.ops.crop_mix.cpu import launch

        return launch.adjoint(gradient, geometry, colour, scale).to(dtype)
    return adjoint_reference(gradient.to(kind), CropMixParams.unpacked(geometry, colour), scale).to(dtype)


def masses(params: CropMixParams, size: tuple[int, int], classes: int, soften: Soften) -> tuple[Tensor, Tensor]:
    """Masses [N,2] and loss weights [N] of N samples in host memory, in one pass. Needs numba.

    blend is float32 or None, `soften.k` a number, its p_max and threshold in range: `soft_targets` sees to it.
    """
    from fastaug.ops.crop_mix.cpu.host_masses import masses_on_host

    return masses_on_host(params, size, classes, soften)

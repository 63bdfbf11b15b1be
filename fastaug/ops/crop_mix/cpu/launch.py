"""Runs the row program on torch tensors: its tables and scratch memory, on as many threads as torch uses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.ops.crop_mix.cpu import memory, row_program
from fastaug.ops.crop_mix.cpu.team import in_threads
from fastaug.ops.crop_mix.cpu.vectors import PIXELS
from fastaug.ops.crop_mix.params import partner_users

Floats = npt.NDArray[np.float32]


def forward(
    images: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float], bias: Sequence[float], out: Tensor
) -> None:
    """images [N,H,W,C] uint8 or float -> out [N,H,W,C] contiguous, floating; see `CropMixParams.packed`.

    Images that are neither uint8 nor float32, or not contiguous, are copied first; an output that is neither
    float32 nor bfloat16 is rounded from float32 afterwards.
    """
    if out.dtype not in (torch.float32, torch.bfloat16):
        wide = torch.empty_like(out, dtype=torch.float32)
        forward(images, geometry, colour, scale, bias, wide)
        out.copy_(wide)
        return
    images = (images if images.dtype == torch.uint8 else images.float()).contiguous()
    width, channels = images.shape[2:]
    tables = np.stack([_table(scale, bias), _table([1.0] * channels, [0.0] * channels)])
    bits = out.view(torch.int32 if out.dtype == torch.float32 else torch.int16).numpy()
    bits = bits.view(np.uint32 if out.dtype == torch.float32 else np.uint16)
    arrays = images.numpy(), geometry.numpy(), colour.numpy(), tables, (np.float32(0),) * channels, bits

    def run(start: int, stop: int) -> None:
        row_program.forward(*arrays, bits.nbytes >= memory.STREAM_BYTES, _work(width, channels), start, stop)

    in_threads(run, len(images))


def adjoint(gradient: Tensor, geometry: Tensor, colour: Tensor, scale: Sequence[float]) -> Tensor:
    """Gradient [N,H,W,C] in the output of `forward` -> gradient in its float images: float32, contiguous."""
    gradient = gradient.float().contiguous()
    out = torch.zeros_like(gradient)
    users, edges = partner_users(geometry[:, 3])
    channels = (np.float32(0),) * gradient.shape[3]
    fixed = (gradient.numpy(), geometry.numpy(), colour.numpy(), users.numpy(), edges.numpy())

    def run(start: int, stop: int) -> None:
        row_program.adjoint(*fixed, _table(scale, scale), channels, out.numpy(), start, stop)

    in_threads(run, len(out))
    return out


def _table(scale: Sequence[float], bias: Sequence[float]) -> Floats:
    """Scale and bias, each repeated for a block of pixels: [2, PIXELS * C] float32."""
    return np.array([list(scale) * PIXELS, list(bias) * PIXELS], dtype=np.float32)


def _work(width: int, channels: int) -> tuple[Any, ...]:
    """Scratch memory of one thread for `row_program.forward`."""
    row, block = (np.empty((2, n * channels), dtype=np.float32) for n in (width, PIXELS))
    return *row, *block, np.empty(width * channels, dtype=np.uint16)

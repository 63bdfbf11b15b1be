"""Memory for large outputs on a CPU: where a cache line starts, huge pages, when to write past the caches."""

import math

import numpy as np
import torch
from torch import Tensor

LINE = 64  # bytes of a cache line
STREAM_BYTES = 4 << 20  # larger outputs do not stay in cache until the network reads them: write past it


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory that starts a cache line; a large one in huge pages, which NumPy asks Linux for.

    Touching fresh 4 KiB pages takes several times as long as the op itself.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < STREAM_BYTES:
        return torch.empty(shape, dtype=dtype)
    memory = np.empty(size + LINE, dtype=np.uint8)
    skip = -memory.ctypes.data % LINE
    return torch.from_numpy(memory[skip : skip + size]).view(dtype).view(shape)

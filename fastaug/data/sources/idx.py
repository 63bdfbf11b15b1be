"""MNIST (LeCun et al. 1998) from its IDX files, plain or gzipped; also sets published under the same file names."""

import math
import struct

import numpy as np
import numpy.typing as npt

from fastaug.data.sources.array_files import AGAIN, ArraySet, Files, Layout, Part, checked
from fastaug.errors import DataError

DIGITS = tuple("0123456789")
_UINT8 = 0x08


def _idx(files: Files, name: str, axes: int) -> npt.NDArray[np.uint8]:
    """Two zero bytes, the type, the number of axes, each extent as big-endian uint32, then the values."""
    raw, where, start = files.contents[name], files.where(name), 4 * (1 + axes)
    if len(raw) < start or raw[:4] != bytes((0, 0, _UINT8, axes)):
        text = f"{where}: begins with {raw[:4].hex() or 'nothing'}, not 0000{_UINT8:02x}{axes:02x}"
        raise DataError(f"{text} and {axes} extents; {AGAIN}")
    shape = struct.unpack(f">{axes}I", raw[4:start])
    if 0 in shape or len(raw) - start != math.prod(shape):
        text = f"{where}: {len(raw) - start} bytes of values for the stated shape {shape}"
        raise DataError(f"{text}; {AGAIN}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def _part(files: Files, name: str) -> Part:
    images, labels = _idx(files, f"{name}-images-idx3-ubyte", 3), _idx(files, f"{name}-labels-idx1-ubyte", 1)
    return checked(images, labels.tolist(), len(DIGITS), files.where(f"{name}-labels-idx1-ubyte"))


MNIST = (
    Layout(
        files=tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        folders=("raw", "MNIST/raw"),  # as torchvision keeps them
        archive="",
        parse=lambda files: ArraySet(DIGITS, _part(files, "train"), _part(files, "t10k")),
    ),
)

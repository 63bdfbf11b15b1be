"""SVHN, cropped digits (Netzer et al. 2011), from train_32x32.mat and test_32x32.mat; the extra images are not read.

Of the MATLAB files, `X` is [32, 32, 3, N] uint8 and `y` [N, 1]; label 10 means digit 0.
"""

import io
import struct
import zlib

import numpy as np

from fastaug.data.sources.array_files import AGAIN, ArraySet, Files, Layout, Part, checked
from fastaug.data.sources.idx import DIGITS
from fastaug.errors import DataError

# What scipy raises on broken files; NotImplementedError for MATLAB's newer format, which is HDF5.
_BROKEN = (OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, NotImplementedError)


def _part(files: Files, name: str) -> Part:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    where = files.where(name)
    try:
        found = loadmat(io.BytesIO(files.contents[name]), variable_names=("X", "y"))
    except (*_BROKEN, MatReadError, zlib.error, struct.error) as error:
        raise DataError(f"{where}: truncated or no MATLAB file of version 5 ({error}); {AGAIN}") from error
    images, labels = found.get("X"), found.get("y")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{where}: its X is no uint8 array [32, 32, 3, N]; {AGAIN}")
    if labels is None or labels.dtype.kind not in "iu" or not ((labels >= 1) & (labels <= 10)).all():
        raise DataError(f"{where}: its y is no column of labels from 1 to 10; {AGAIN}")
    return checked(images.transpose(3, 0, 1, 2), (labels.ravel() % 10).tolist(), len(DIGITS), where)


SVHN = (
    Layout(
        files=("train_32x32.mat", "test_32x32.mat"),
        folders=("svhn", "SVHN"),
        archive="",
        parse=lambda files: ArraySet(DIGITS, _part(files, "train_32x32.mat"), _part(files, "test_32x32.mat")),
    ),
)

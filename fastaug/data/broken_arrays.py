"""Files of NumPy that may be broken: opened with all checksums compared, and what is raised for broken ones."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# What NumPy raises for .npy and .npz files that are broken, or are none; for `except`
BROKEN = (
    *(OSError, ValueError, LookupError, EOFError, RuntimeError, TypeError),
    AttributeError,  # a member of an archive that is no array is read as bytes
    MemoryError,  # a shape that no memory holds
    *(SyntaxError, tokenize.TokenError),  # a header is a literal of Python
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


@contextmanager
def open_npz(path: Path) -> "Iterator[np.lib.npyio.NpzFile]":
    """An opened .npz file whose bytes are those that were written, by their CRC-32; one of BROKEN otherwise.

    NumPy alone compares a checksum only where an array is read to its end: a damaged header may say that it is shorter.
    """
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as z:
        if (broken := z.zip.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong CRC-32 of {broken}")
        yield z

"""Reads pickles of plain values and arrays of integers without running anything that they name.

A pickle can ask for any function to be called. Here the few names that numpy and bytes need stand for inert records,
every other name is refused, and arrays are put together afterwards, from the records, by code of our own.
"""

import io
import math
import pickle
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError

LARGEST = 2**29  # bytes of a pickle in a zip file
# What the standard unpickler raises on broken bytes; a broken length field ends in MemoryError.
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, AttributeError, ImportError, LookupError),
    *(TypeError, ValueError, ArithmeticError, MemoryError, struct.error),
)

_NO_ZIP = (StopIteration, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error)  # RuntimeError: encrypted


class _Record:
    """What would have been called with `args`, and the state it would have been given."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:  # keeps a pickle from setting attributes
        self.state = state


class _Array(_Record):
    """numpy's _reconstruct(class, shape, code), state (version, shape, dtype, Fortran order, bytes)."""


class _Buffer(_Record):
    """numpy's _frombuffer(bytes, dtype, shape, order) of pickle protocol 5."""


class _Type(_Record):
    """numpy.dtype or numpy.ndarray."""


class _Bytes(_Record):
    """How Python 3 writes bytes in protocols 0 to 2: _codecs.encode(text, "latin1")."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding != "latin1":
            raise ValueError(f"bytes encoded as {encoding!r}")
        return text.encode("latin1")


_NAMES: dict[tuple[str, str], type[_Record]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Bytes,
}


# Python's own unpickler, not the one in C, which a flipped bit in a memo number makes allocate up to 64 GB.
class _Unpickler(pickle._Unpickler):
    def __init__(self, raw: bytes, where: str) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")  # strings of Python 2
        self.where = where

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in _NAMES:
            text = f"{self.where}: its pickle asks for {module}.{name}, which no such file contains; nothing was run"
            raise DataError(f"{text}; replace the file by the original")
        return _NAMES[module, name]


def read_table(raw: bytes, where: str) -> dict[str, Any]:
    """The dict in a pickle, keys as text; DataError, naming `where`, for broken bytes or any foreign name."""
    return _table(_Unpickler(raw, where), raw, where)


def read_torch_table(raw: bytes, where: str) -> dict[str, Any]:
    """The dict that torch.save wrote, in its zip file or in its older form; as `read_table`."""
    if not raw.startswith(b"PK"):
        reader = _Unpickler(raw, where)
        return _table(reader, raw, where, skipped=3)  # a magic number, a version, and facts of the machine
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > LARGEST:
                raise DataError(f"{where}: {name} in it has more than {LARGEST} bytes; replace it by the original")
            pickled = archive.read(name)
    except (*_BROKEN, *_NO_ZIP) as error:
        raise DataError(f"{where}: no file of torch.save ({error}); download it again") from error
    return read_table(pickled, where)


def _table(reader: _Unpickler, raw: bytes, where: str, skipped: int = 0) -> dict[str, Any]:
    """The dict behind `skipped` other pickles."""
    try:
        table = [reader.load() for _ in range(skipped + 1)][-1]
    except _BROKEN as error:
        text = f"{where}: truncated or no pickle ({len(raw)} bytes: {error})"
        raise DataError(f"{text}; download it again") from error
    if not isinstance(table, dict):
        raise DataError(f"{where}: holds a {type(table).__name__}, not a dict; replace the file by the original")
    return {text_of(key): value for key, value in table.items()}


def text_of(value: Any) -> str:
    """A string of either Python as text; "" for anything else."""
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def uint8_rows(value: Any, where: str) -> npt.NDArray[np.uint8]:
    """A pickled uint8 array of two axes; DataError when it is anything else or its bytes are too few or many."""
    return _array(value, f"{where}: 'data'", ("u1",), 2)


def integer_column(value: Any, where: str) -> npt.NDArray[np.int64]:
    """A pickled array of integers of one axis, as `uint8_rows`."""
    return _array(value, where, ("u1", "i1", "i2", "i4", "i8"), 1).astype(np.int64)


def _array(value: Any, where: str, kinds: tuple[str, ...], axes: int) -> npt.NDArray[Any]:
    shape: Any = None
    kind: Any = None
    raw: Any = None
    order: Any = "C"
    if isinstance(value, _Array) and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, fortran, raw = value.state
        order = "F" if fortran else "C"
    elif isinstance(value, _Buffer) and len(value.args) == 4:
        raw, kind, shape, order = value.args
    named = text_of(kind.args[0]).lstrip("|<") if isinstance(kind, _Type) and kind.args else ""
    whole = isinstance(shape, tuple) and len(shape) == axes and all(type(n) is int and n >= 0 for n in shape)
    if not whole or named not in kinds or order not in ("C", "F") or not isinstance(raw, (bytes, bytearray)):
        what = "uint8 array of two axes" if axes == 2 else "array of integers of one axis"
        raise DataError(f"{where} is no {what}; replace the file by the original")
    dtype = np.dtype(f"<{named}")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{where} has {len(raw)} bytes for shape {shape}; download it again")
    return np.frombuffer(bytes(raw), dtype=dtype).reshape(shape, order=order)

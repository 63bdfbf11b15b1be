"""numba's compiler as the modules of this folder use it, with a cache on disk that any change of the code passes by.

numba takes a stored function for current while the file that defines it is unchanged, whatever became of the functions
that it calls. Here compiled code depends on its neighbours (`row_program` on `vectors`), so a hash of all code that it
is made of is part of the name under which numba stores a function: of the code that runs, not of the files, which may
have been changed after Python read them, or be newer than what Python keeps of them in `__pycache__`. Where functions
are stored is left to numba: beside the source or, where that is read-only, in the user's cache; `NUMBA_CACHE_DIR`
overrides both.
"""

import fcntl
import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import numba
import numpy as np
from numba.core.caching import FunctionCache

inlined = numba.njit(nogil=True, error_model="numpy")  # for what an `entry` calls: stored as a part of it


def entry(function: Any) -> Any:
    """Compiles a function that Python calls; runs without the GIL, kept on disk for the code as it is now."""
    digest = hashlib.sha256("\n".join(_code_of(function, set())).encode()).hexdigest()
    function.__qualname__ += f"-{digest[:16]}"  # numba names its files by module, qualified name and line
    compiled = numba.njit(nogil=True, error_model="numpy")(function)
    try:
        compiled._cache = _Cache(function)  # as cache=True does
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        text = "compiled anew by every process, for some seconds: set NUMBA_CACHE_DIR to a folder that can be written"
        warnings.warn(f"the fused op is {text}", stacklevel=2)
    return compiled


def _code_of(value: Any, seen: set[int]) -> Iterator[str]:
    """The code that a function is made of: its own, that of all functions it names, and the constants among them."""
    value = getattr(value, "py_func", getattr(value, "_defn", value))  # of an `inlined` function, of an intrinsic
    if isinstance(value, FunctionType) and id(value) not in seen:
        seen.add(id(value))  # functions may name each other
        yield repr((value.__defaults__, value.__kwdefaults__))
        yield from _code_of(value.__code__, seen)
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        for other in [*cells, *(value.__globals__.get(name) for name in sorted(_names_in(value.__code__)))]:
            yield from _code_of(other, seen)
    elif isinstance(value, CodeType):
        yield repr((value.co_code.hex(), value.co_names, value.co_varnames))
        for constant in value.co_consts:
            yield from _code_of(constant, seen)
    elif isinstance(value, frozenset):
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, (int, float, str, bytes, tuple, np.generic)):
        yield repr(value)


def _names_in(code: CodeType) -> set[str]:
    """The names that code and the code within it look up."""
    within = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names_in, within))


class _Cache(FunctionCache):
    """numba's files of one function, for one process at a time.

    numba reads its table of stored types, adds one and writes the table back. Two processes that compile for different
    types would give both the same file, and one of them be served machine code for the types of the other.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code stored for a signature, or None."""
        with self._alone():
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Stores the code of a signature."""
        self._impl.locator.ensure_cache_path()
        with self._alone():
            super().save_overload(sig, data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the lock of the function's files; there is none where they cannot be written, nor any need for it."""
        try:
            lock = os.open(os.path.join(self._cache_path, f"{self._impl.filename_base}.lock"), os.O_RDWR | os.O_CREAT)
        except OSError:
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

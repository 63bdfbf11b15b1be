"""numba's compiler as the modules of this folder use it, with a cache on disk that knows all of their sources.

numba takes a stored function for current while the file that defines it is unchanged, whatever became of the modules
that the file imports. Here compiled code depends on its neighbours (`row_program` on `vectors`), so a hash of all of
them is part of the name under which numba stores a function. Where it stores them is left to numba: beside the source
or, where that is read-only, in the user's cache; `NUMBA_CACHE_DIR` overrides both.
"""

import hashlib
from pathlib import Path
from typing import Any

import numba

SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))

inlined = numba.njit(nogil=True, error_model="numpy")  # for what an `entry` calls: stored as a part of it


def entry(function: Any) -> Any:
    """Compiles a function that Python calls; runs without the GIL, kept on disk for the sources as they are now."""
    function.__qualname__ += f"-{SOURCES.hexdigest()[:16]}"  # numba names its files by module, qualified name and line
    return numba.njit(nogil=True, error_model="numpy", cache=True)(function)

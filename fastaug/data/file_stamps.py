"""Stamps of files: their lengths and times, which tell whether a file was changed since it was read.

Every start looks at every file. For millions the interpreter's share of that is longer than the kernel's, and keeps
threads from each other: a loop compiled by numba asks the kernel (statx(2)) instead, which takes a microsecond a file
and thread, and four where the kernel has forgotten the name.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.data.path_table import PathTable

# [N, 3]: length, when the bytes changed, when anything did (ns; what is beyond 2262 counts as 2262); -1 without access
Stamps = npt.NDArray[np.int64]

COMPILED_FROM = 1 << 18  # files; compiling takes two seconds, as long as Python needs for a million of them
_STRETCH = 1 << 16
_LAST = 2**63 // 10**9 - 1  # s, of which int64 holds the ns; as far before 1970
_LONGEST = 4096  # bytes of a path that the kernel takes, its end included: PATH_MAX
_ASKED = 0x40 | 0x80 | 0x200  # STATX_MTIME, STATX_CTIME, STATX_SIZE
# struct statx of the kernel: the same on every machine
_STATX = np.dtype(
    {
        "names": ["size", "changed", "changed_ns", "modified", "modified_ns"],
        "formats": ["<i8", "<i8", "<u4", "<i8", "<u4"],
        "offsets": [40, 96, 104, 112, 120],
        "itemsize": 256,
    }
)


def stamps_of(root: bytes, paths: PathTable, threads: int) -> Stamps:
    """The stamps of the files `paths` below `root`, by `threads` threads."""
    stamps = np.full((len(paths), 3), -1, dtype=np.int64)
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fill = _filled if len(paths) < COMPILED_FROM else _fastest(folder)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda first: fill(folder, paths, first, stamps), range(0, len(paths), _STRETCH)))
    finally:
        os.close(folder)
    return stamps


def _fastest(folder: int) -> Callable[[int, PathTable, int, Stamps], None]:
    """The compiled loop, or Python where the system refuses statx(2), as profiles of old sandboxes do."""
    compiled = partial(_filled_compiled, _compiled_loop())
    own = np.full((1, 3), -1, dtype=np.int64)
    compiled(folder, PathTable.of([b"."]), 0, own)
    return _filled if own[0, 0] < 0 else compiled


def _filled(folder: int, paths: PathTable, first: int, stamps: Stamps) -> None:
    """Fills in one stretch of rows; paths are relative to an open folder."""
    for row in range(first, min(first + _STRETCH, len(paths))):
        try:
            file = os.stat(paths[row], dir_fd=folder)
        except OSError:
            continue
        stamps[row] = file.st_size, in_range(file.st_mtime_ns), in_range(file.st_ctime_ns)


def in_range(time_ns: int) -> int:
    """A time of a file in ns, the seconds limited to what int64 holds."""
    seconds, rest = divmod(time_ns, 10**9)
    return max(-_LAST, min(seconds, _LAST)) * 10**9 + rest


def _filled_compiled(loop: Callable[..., Any], folder: int, paths: PathTable, first: int, stamps: Stamps) -> None:
    """As `_filled`; the threads do not wait for each other."""
    last = min(first + _STRETCH, len(paths))
    names = np.frombuffer(paths.blob, dtype=np.uint8)
    loop(folder, names, paths.offsets[first : last + 1], np.zeros(1, _STATX), stamps[first:last])


@lru_cache(maxsize=1)
def _compiled_loop() -> Callable[..., Any]:
    import ctypes

    import numba

    statx = ctypes.CDLL(None).statx
    statx.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    statx.restype = ctypes.c_int

    @numba.njit(nogil=True)
    def loop(folder, names, offsets, answer, stamps):  # type: ignore[no-untyped-def]
        path = np.zeros(_LONGEST, np.uint8)
        for row in range(len(stamps)):
            length = offsets[row + 1] - offsets[row]
            if length >= _LONGEST:
                continue
            path[:length] = names[offsets[row] : offsets[row + 1]]
            path[length] = 0
            if statx(folder, path.ctypes.data, 0, _ASKED, answer.ctypes.data) == 0:
                file = answer[0]
                stamps[row, 0] = file.size
                modified, changed = max(-_LAST, min(file.modified, _LAST)), max(-_LAST, min(file.changed, _LAST))
                stamps[row, 1] = modified * 1_000_000_000 + np.int64(file.modified_ns)
                stamps[row, 2] = changed * 1_000_000_000 + np.int64(file.changed_ns)

    return loop

"""The opened tar files of a shard folder: bytes by file and offset, from any thread."""

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError

Bytes = npt.NDArray[np.uint8]
AGAIN = "run tools/make_shards.py on it again with the same settings, or copy it again"
POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python's mmap does not name

_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class ShardFiles:
    """The tar files `sizes` (name -> bytes) below `root`; DataError for one that is missing or of another size.

    `mapped`: they can be viewed. They are closed when nobody holds this object, or one of its views, any more.
    `remedy`: what to do about a file that is not as it was.
    """

    def __init__(self, root: Path, sizes: Mapping[str, int], mapped: bool, remedy: str = AGAIN) -> None:
        self.paths, self._remedy = [root / name for name in sizes], remedy
        self._opened: list[int] = []
        weakref.finalize(self, _close, self._opened)
        self._views: list[Bytes] = []
        self._begins: list[int] = []  # addresses of the views
        for path, expected in zip(self.paths, sizes.values(), strict=True):
            try:
                self._opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                size = os.fstat(self._opened[-1]).st_size
                if size == expected and mapped:
                    mapping = mmap.mmap(self._opened[-1], 0, access=mmap.ACCESS_READ)
                    self._views.append(np.frombuffer(mapping, dtype=np.uint8))
                    self._begins.append(self._views[-1].ctypes.data)
                    os.close(self._opened.pop())  # the mapping holds one of its own
            except OSError as error:
                full = "raise ulimit -n, or make fewer and larger files (of shards: --shard-size)"
                why = f"{error.strerror}); {full if error.errno == errno.EMFILE else remedy}"
                raise DataError(f"{path} cannot be opened ({why}") from error
            if size != expected:
                raise DataError(f"{path}: {size} bytes, not {expected}: truncated or altered; {remedy}")

    def read(self, shard: int, offset: int, length: int) -> Bytes:
        """A copy of `length` bytes of a file."""
        out = np.empty(length, dtype=np.uint8)
        try:
            found = os.preadv(self._opened[shard], [out.data], offset)
        except OSError as error:
            raise self._unreadable(shard, offset, error.errno) from error
        if found != length:
            raise self._unreadable(shard, offset, errno.EFAULT)
        return out

    def view(self, shard: int, offset: int, length: int) -> Bytes:
        """`length` bytes of a mapped file, not copied, read-only.

        They are fetched here, for a page that cannot be fetched when it is looked at ends the process.
        """
        if _advise(self._begins[shard] + offset, length, POPULATE_READ):
            error = ctypes.get_errno()
            if error != errno.EINVAL:  # a kernel too old to say beforehand
                raise self._unreadable(shard, offset, error)
        return self._views[shard][offset : offset + length]

    def announce(self, shards: list[int], offsets: list[int], lengths: list[int]) -> None:
        """Has the system fetch what is about to be read, all at once instead of one after the other."""
        for shard, offset, length in zip(shards, offsets, lengths, strict=True):
            if self._begins:
                _advise(self._begins[shard] + offset, length, mmap.MADV_WILLNEED)
            else:
                os.posix_fadvise(self._opened[shard], offset, length, os.POSIX_FADV_WILLNEED)

    def _unreadable(self, shard: int, offset: int, error: int | None) -> DataError:
        why = f"cut while in use, or {os.strerror(error or errno.EIO)}; check the storage, or {self._remedy}"
        return DataError(f"{self.paths[shard]} cannot be read at byte {offset}: {why}")


def _advise(address: int, length: int, advice: int) -> int:
    """Advice on the pages of mapped memory; not 0 if refused."""
    before = address % mmap.PAGESIZE
    refused: int = _madvise(address - before, length + before, advice)
    return refused


def _close(opened: list[int]) -> None:
    for descriptor in opened:
        os.close(descriptor)

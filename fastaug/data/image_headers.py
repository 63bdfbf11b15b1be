"""The header pass: height and width of every image without decoding it, and which files are damaged.

Screened: unreadable, empty and truncated files, and decompression bombs. A file whose end marker is in place
is not decoded; flipped bits inside it decode to a wrong picture in every library and are not found here.
"""

import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fastaug.data.channel_files import extent_by_header, reads_channels
from fastaug.data.image_files import (
    BROKEN,
    FORMATS,
    DamagedImageError,
    extent_of,
    problem_of,
    reason_of,
    unreadable,
)
from fastaug.errors import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Found = TypeVar("Found")
Item = TypeVar("Item")

TAIL = 64  # bytes searched for an end marker; some writers pad their files

_CHUNK = 256


class Header(NamedTuple):
    """An image's size in pixels as decoded, 0 when unreadable, and `reason`: what is wrong, "" when nothing."""

    height: int
    width: int
    reason: str


def screen_all(
    root: bytes, paths: "Sequence[bytes]", exif: str, threads: int, progress: str, channels: int = 3
) -> list[Header]:
    """The header of every path below `root`, in order; by `threads` threads, `progress` as in `_for_each`."""
    return screen_each(lambda path: screen(os.path.join(root, path), exif, channels), paths, threads, progress)


def screen_stretch(file: BinaryIO, length: int, exif: str) -> Header:
    """The header of an image of `length` bytes that lies in a larger file, given as a file of its own."""
    return _examine(file, length, exif) if length else Header(0, 0, "empty file")


def screen_each(
    function: "Callable[[Item], Header]", items: "Sequence[Item]", threads: int, progress: str
) -> list[Header]:
    """function(item) of all items, in order, by `threads` threads, `progress` as in `_for_each`."""
    from PIL import Image

    Image.init()  # loads Pillow's formats once, before the threads would race for it
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters becomes a reason
        return _for_each(function, items, threads, progress)


def stamps_of(root: bytes, paths: "Sequence[bytes]", threads: int) -> npt.NDArray[np.int64]:
    """[N, 3] of the files below `root`: length, when the bytes changed, when anything did (ns); -1 without access."""

    def found(path: bytes) -> tuple[int, int, int]:
        try:
            file = os.stat(os.path.join(root, path))
        except OSError:
            return -1, -1, -1
        return file.st_size, file.st_mtime_ns, file.st_ctime_ns

    return np.array(_for_each(found, paths, threads, ""), dtype=np.int64).reshape(-1, 3)


def _for_each(
    function: "Callable[[Item], Found]", items: "Sequence[Item]", threads: int, progress: str
) -> "list[Found]":
    """function(item) for all items, in order, on threads; `progress`: the text of a bar, "" for none."""
    from rich.console import Console
    from rich.progress import track

    def chunk(start: int) -> list[Found]:
        return [function(items[i]) for i in range(start, min(start + _CHUNK, len(items)))]

    starts = range(0, len(items), _CHUNK)
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(chunk, starts)
        if progress:
            done = iter(track(done, progress, total=len(starts), console=Console(stderr=True)))
        return [found for part in done for found in part]


def screen(path: bytes, exif: str, channels: int = 3) -> Header:
    """The header of one file. DataError when the storage, not the file, is at fault."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return Header(0, 0, "not a regular file")
        if found.st_size == 0:
            return Header(0, 0, "empty file")
        with open(path, "rb") as file:
            if reads_channels(channels):
                return _examine_channels(file, found.st_size, channels)
            return _examine(file, found.st_size, exif)
    except OSError as error:
        failed = unreadable(path, error)
        if isinstance(failed, DamagedImageError):
            return Header(0, 0, str(failed))
        raise failed from error


def _examine(file: BinaryIO, size: int, exif: str) -> Header:
    from PIL import Image

    height = width = 0
    try:
        with Image.open(file, formats=FORMATS) as image:
            if problem := problem_of(image):
                return Header(0, 0, problem)
            height, width = extent_of(image, exif)
            if not _complete(file, size, image.format):
                image.load()
    except (Image.DecompressionBombError, Image.UnidentifiedImageError) as error:
        return Header(0, 0, reason_of(error))
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        return Header(height, width, reason_of(error))
    return Header(height, width, "")


def _examine_channels(file: BinaryIO, size: int, channels: int) -> Header:
    try:
        return Header(*extent_by_header(file, size, channels), "")
    except DamagedImageError as error:
        return Header(0, 0, str(error))


def _complete(file: BinaryIO, size: int, kind: str | None) -> bool:
    """Whether the file ends as its format does; False where that cannot be told cheaply."""
    position = file.tell()
    file.seek(0)
    head = file.read(8)
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    file.seek(position)  # the file is in use by Pillow
    if kind in ("JPEG", "MPO"):
        return b"\xff\xd9" in tail
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in tail
    return kind == "WEBP" and int.from_bytes(head[4:], "little") + 8 <= size  # the length a RIFF file states

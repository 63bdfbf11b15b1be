"""The header pass: height and width of every image without decoding it, and which files are damaged.

Screened: unreadable, empty and truncated files, and decompression bombs. A file whose end marker is in place
is not decoded; flipped bits inside it decode to a wrong picture in every library and are not found here.
"""

import os
import stat
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fastaug.data.channel_files import extent_by_header, reads_channels
from fastaug.data.image_files import (
    BROKEN_IMAGE,
    FORMATS,
    DamagedImageError,
    extent_of,
    problem_of,
    reason_of,
    unreadable,
)
from fastaug.data.progress import tracked
from fastaug.errors import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Item = TypeVar("Item")

TAIL = 64  # bytes searched for an end marker; some writers pad their files

_CHUNK = 256


class Status(IntEnum):
    """Whether an image can be decoded, as far as its header tells."""

    OK = 0
    DAMAGED = 1


class Header(NamedTuple):
    """An image's size in pixels as decoded, 0 when unreadable, and `reason`: what is wrong, "" when nothing."""

    height: int
    width: int
    reason: str


class HeaderTable(NamedTuple):
    """Headers of N images as columns: sizes [N], `status` [N] of Status, and why each DAMAGED one is."""

    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    status: npt.NDArray[np.uint8]
    reasons: dict[int, str]

    @classmethod
    def empty(cls, count: int) -> "HeaderTable":
        """A table of `count` rows to be filled."""
        return cls(np.zeros(count, np.int32), np.zeros(count, np.int32), np.zeros(count, np.uint8), {})

    def put(self, row: int, header: Header) -> None:
        """Fills in an empty row."""
        self.heights[row], self.widths[row] = header.height, header.width
        if header.reason:
            self.status[row], self.reasons[row] = Status.DAMAGED, header.reason


def screen_all(
    root: bytes, paths: "Sequence[bytes]", exif: str, threads: int, progress: str, channels: int = 3
) -> "Iterator[Header]":
    """The header of every path below `root`, in order; by `threads` threads, `progress` as in `screen_each`."""
    return screen_each(lambda path: screen(os.path.join(root, path), exif, channels), paths, threads, progress)


def screen_stretch(file: BinaryIO, length: int, exif: str) -> Header:
    """The header of an image of `length` bytes that lies in a larger file, given as a file of its own."""
    return _examine(file, length, exif) if length else Header(0, 0, "empty file")


def screen_each(
    function: "Callable[[Item], Header]", items: "Sequence[Item]", threads: int, progress: str
) -> "Iterator[Header]":
    """function(item) of all items, in order, by `threads` threads, none kept; `progress`: of a bar, "" for none."""
    from PIL import Image

    def chunk(start: int) -> list[Header]:
        return [function(items[i]) for i in range(start, min(start + _CHUNK, len(items)))]

    Image.init()  # loads Pillow's formats once, before the threads would race for it
    starts = range(0, len(items), _CHUNK)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters becomes a reason
        for part in tracked(_ahead(pool, chunk, starts, 2 * threads), progress, len(starts)):
            yield from part


def _ahead(
    pool: ThreadPoolExecutor, function: "Callable[[int], list[Header]]", items: "Iterable[int]", count: int
) -> "Iterator[list[Header]]":
    """function(item) of all items, in order, worked on by a pool at most `count` ahead: more would fill the memory."""
    rest = iter(items)
    ahead = deque(pool.submit(function, item) for item in islice(rest, count))
    while ahead:
        yield ahead.popleft().result()
        ahead.extend(pool.submit(function, item) for item in islice(rest, 1))


def table_of(headers: "Iterable[Header]", count: int) -> HeaderTable:
    """The table of `count` headers."""
    table = HeaderTable.empty(count)
    for row, header in enumerate(headers):
        table.put(row, header)
    return table


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
    except BROKEN_IMAGE as error:
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

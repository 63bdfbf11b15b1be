"""The header pass: height and width of every image without decoding it, and which files are damaged.

Screened: unreadable, empty and truncated files, and decompression bombs. A file whose end marker is in place
is not decoded; flipped bits inside it decode to a wrong picture in every library and are not found here.
"""

import errno
import os
import stat
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from fastaug.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

MAX_PIXELS = 178_956_970  # more is a decompression bomb; Pillow's own limit
TAIL = 64  # bytes searched for an end marker; some writers pad their files
ORIENTATION = 0x0112  # EXIF tag; 5-8 turn the picture by a quarter

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")  # none of those that start another program
_CHUNK = 256
# What Pillow raises on broken bytes; MemoryError is not among them, for it says nothing about the file.
_BROKEN: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
)
_BROKEN += (TypeError, AttributeError, RuntimeError, struct.error, zlib.error)
# Trouble of the machine, not of the file: never recorded as damage.
_MACHINE = {
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
}


class Header(NamedTuple):
    """An image's size in pixels as decoded, 0 when unreadable, and `reason`: what is wrong, "" when nothing."""

    height: int
    width: int
    reason: str


def screen_all(root: bytes, paths: "Sequence[bytes]", exif: str, threads: int, progress: bool) -> list[Header]:
    """The header of every path below `root`, in order, read by `threads` threads."""
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    Image.init()  # loads Pillow's formats once, before the threads would race for it

    def chunk(start: int) -> list[Header]:
        stop = min(start + _CHUNK, len(paths))
        return [screen(os.path.join(root, paths[i]), exif) for i in range(start, stop)]

    starts = range(0, len(paths), _CHUNK)
    found: list[Header] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters becomes a reason
        done = pool.map(chunk, starts)
        if progress:
            text = f"index of {len(paths):,} images"
            done = iter(track(done, text, total=len(starts), console=Console(stderr=True)))
        for headers in done:
            found += headers
    return found


def screen(path: bytes, exif: str) -> Header:
    """The header of one file. DataError when the storage, not the file, is at fault."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return Header(0, 0, "not a regular file")
        if found.st_size == 0:
            return Header(0, 0, "empty file")
        with open(path, "rb") as file:
            return _examine(file, found.st_size, exif)
    except OSError as error:
        if error.errno in _MACHINE:
            raise DataError(f"{os.fsdecode(path)} cannot be read ({error.strerror}); check the storage") from error
        return Header(0, 0, f"cannot be opened: {error.strerror}")


def _examine(file: BinaryIO, size: int, exif: str) -> Header:
    from PIL import Image

    height = width = 0
    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:  # whatever limit Pillow has been given elsewhere
                raise Image.DecompressionBombError
            if exif == "apply" and _quarter_turn(image):
                width, height = height, width
            if not _complete(file, size, image.format):
                image.load()
    except Image.DecompressionBombError:
        return Header(0, 0, f"more than {MAX_PIXELS} pixels (decompression bomb)")
    except Image.UnidentifiedImageError:
        return Header(0, 0, "no image header that can be read")
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        return Header(height, width, f"truncated or corrupt: {error}")
    return Header(height, width, "")


def _quarter_turn(image: "Image.Image") -> bool:
    try:
        return image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    except _BROKEN:  # decoders read past a broken EXIF block too, and turn nothing
        return False


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

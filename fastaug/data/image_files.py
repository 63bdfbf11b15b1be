"""One image file in memory: reading it, who can decode it, and decoding it by Pillow where DALI cannot.

DALI is given only what its own parser accepts, in formats whose decoder survives damaged data: a header that it
refuses, or a damaged TIFF or JPEG 2000 file, can end the process. What else Pillow opens, Pillow decodes: all images
with transparency too, where that is to show a background, for DALI drops it.
"""

import io
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.data.broken_arrays import BROKEN
from fastaug.errors import MACHINE, DataError

Bytes = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]
Extent = tuple[int, int]  # height, width
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255
Stamp = tuple[int, int]  # a file's length and when its bytes changed (ns)

MAX_PIXELS = 178_956_970  # more is a decompression bomb; Pillow's own limit
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000")  # none that starts another program

_DALI_CODECS = ("jpeg", "png", "webp", "bmp")  # not "pnm": its decoder ignores what the file says is white
_DALI_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF")  # of JPEG, PNG and WebP files
_EXIF = b"Exif\0\0"  # how the block begins in a JPEG file
_TURN = 0x0112  # the EXIF tag of the orientation
_QUARTER_TURNS = (5, 6, 7, 8)
_TRANSPOSITIONS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation -> Pillow's Transpose that undoes it
# What Pillow raises on broken bytes; MemoryError is not among them, for it says nothing about the file.
BROKEN_IMAGE = (ArithmeticError, *(kind for kind in BROKEN if kind is not MemoryError))


class DamagedImageError(Exception):
    """An image file that cannot be used; its text is the reason."""


def read_image_file(path: bytes) -> tuple[Bytes, Stamp]:
    """The bytes of a file, and its stamp. DamagedImageError, or DataError when the storage is at fault."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not keep us waiting
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DamagedImageError("not a regular file")
            data = np.empty(found.st_size, dtype=np.uint8)
            length = os.preadv(descriptor, [data.data], 0) if len(data) else 0
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(path, error) from error
    if not length:
        raise DamagedImageError("empty file")
    return data[:length], (found.st_size, found.st_mtime_ns)


def unreadable(path: bytes, error: OSError) -> DamagedImageError | DataError:
    """The error to raise for a file that cannot be opened or read: the file's own fault, or the machine's."""
    if error.errno in MACHINE:
        return DataError(f"{os.fsdecode(path)} cannot be read ({error.strerror}); check the storage")
    return DamagedImageError(f"cannot be opened: {error.strerror}")


def file_for_dali(data: Bytes, exif: str, background: Colour | None = None) -> tuple[Bytes, Extent] | None:
    """A file as DALI may be given it, and the (height, width) that it decodes to; None where it may not have it.

    The parser is the one inside DALI's decoder (nvImageCodec), asked for one file at a time: here it may refuse.
    """
    try:
        found = _parser()(data)
        height, width = found.height, found.width
        if found.codec_name not in _DALI_CODECS or found.dtype not in _DALI_TYPES:
            return None
    except (RuntimeError, TypeError):  # no image header that it knows; a type of pixels that has no name
        return None
    if not 0 < height * width <= MAX_PIXELS:
        return None
    if background is not None and found.codec_name != "jpeg" and _is_transparent(data):
        return None
    return (data, (height, width)) if exif == "ignore" else _turned(data, height, width)


def _is_transparent(data: Bytes) -> bool:
    """Whether a file says that pixels of it may be transparent; True too where Pillow does not open it."""
    try:
        with _opened(data) as image:
            return bool(image.has_transparency_data)
    except DamagedImageError:
        return True


@cache
def _parser() -> Any:
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # its messages name no file
    from nvidia import nvimgcodec

    return nvimgcodec.CodeStream


def _turned(data: Bytes, height: int, width: int) -> tuple[Bytes, Extent] | None:
    """`file_for_dali` where EXIF's turn is applied: the file says the turn that Pillow reads, and no other EXIF.

    A decoder that reads a broken block in another way would look for a window outside of the image.
    """
    content = data.tobytes()
    if not any(mark in content for mark in _EXIF_MARKS):
        return data, (height, width)
    try:
        with _opened(data) as image:
            orientation = orientation_of(image) if image.format in ("JPEG", "MPO") else None
    except DamagedImageError:
        return None
    said = orientation and _saying(content, orientation)
    if not said:
        return None
    return np.frombuffer(said, dtype=np.uint8), (width, height) if orientation in _QUARTER_TURNS else (height, width)


def _saying(jpeg: bytes, orientation: int) -> bytes | None:
    """A JPEG file of the same length whose EXIF says its orientation and nothing else; None where there is no room."""
    start = jpeg.find(_EXIF)
    without = jpeg.replace(_EXIF, _EXIF.lower())
    if orientation == 1:
        return without
    entry = struct.pack(">HHIHH", _TURN, 3, 1, orientation, 0)  # one number of 16 bits
    block = _EXIF + b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    room = int.from_bytes(jpeg[max(start - 2, 0) : start]) - 2
    if start < 4 or jpeg[start - 4 : start - 2] != b"\xff\xe1" or room < len(block):
        return None
    return without[:start] + block + without[start + len(block) :]


def extent_for_pillow(data: Bytes, exif: str) -> Extent:
    """(height, width) of a file as Pillow decodes it, by its header. DamagedImageError where it has none."""
    with _opened(data) as image:
        return extent_of(image, exif)


def decode_by_pillow(data: Bytes, exif: str, background: Colour | None = None) -> Pixels:
    """uint8 [H, W, 3] RGB of a file, its first frame, as `pixels_of`. DamagedImageError where Pillow fails."""
    with _opened(data) as image:
        return pixels_of(image, exif, background)


def pixels_of(image: Any, exif: str, background: Colour | None = None) -> Pixels:
    """uint8 [H, W, 3] RGB of an image that Pillow has opened.

    Transparent pixels show the `background`, None: the colour that the file gives them.
    """
    from PIL import Image

    turn = orientation_of(image) if exif == "apply" and image.format != "TIFF" else None  # Pillow turns that itself
    if background is not None and image.format == "PNG":
        _scale_transparent_level(image)
    image.load()
    seen_through = background is not None and image.has_transparency_data
    turned = image.transpose(Image.Transpose(_TRANSPOSITIONS[turn])) if turn in _TRANSPOSITIONS else image
    return _composited(turned, background) if background is not None and seen_through else _rgb(turned)


@contextmanager
def _opened(data: Bytes) -> Iterator[Any]:
    """The file as Pillow opens it; what Pillow says of it, then or later, becomes a DamagedImageError."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=FORMATS) as image:
            if problem := problem_of(image):
                raise DamagedImageError(problem)
            yield image
    except Image.DecompressionBombError as error:
        raise DamagedImageError(reason_of(error)) from error
    except BROKEN_IMAGE as error:
        raise DamagedImageError(reason_of(error)) from error


def extent_of(image: Any, exif: str) -> Extent:
    """(height, width) of an image that Pillow has opened, as it will be decoded; a TIFF file's turn is in its size."""
    turned = exif == "apply" and image.format != "TIFF" and orientation_of(image) in _QUARTER_TURNS
    return (image.width, image.height) if turned else (image.height, image.width)


def problem_of(image: Any) -> str:
    """Why an image that Pillow opened is not used, by its header; "" where it is."""
    if image.width * image.height > MAX_PIXELS:  # whatever limit Pillow has been given elsewhere
        return _BOMB
    if image.mode == "I" and image.format != "PPM":  # whose pixels have 16 bits
        return "pixels of 32 bits, whose white is not known; convert it to 8 or 16 bits"
    return ""


_BOMB = f"more than {MAX_PIXELS} pixels (decompression bomb)"


def reason_of(error: Exception) -> str:
    """What Pillow's error says about a file, in one line."""
    from PIL import Image

    if isinstance(error, Image.DecompressionBombError):
        return _BOMB
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image header that can be read"
    return f"truncated or corrupt: {' '.join(str(error).split()) or type(error).__name__}"


def orientation_of(image: Any) -> int | None:
    """EXIF's orientation, 1 to 8 (1: as stored, also where it is not said); None where the block is broken."""
    try:
        found = image.getexif().get(_TURN, 1)
        return int(found) if found in range(1, 9) else 1
    except BROKEN_IMAGE:  # decoders read past a broken EXIF block too, and turn nothing
        return None


def _checked(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not (pixels.min(initial=0) >= 0 and pixels.max(initial=0) <= 1):  # nan too
        raise DamagedImageError("floating-point pixels outside [0, 1], whose white is not known; scale them")
    return pixels


def _scale_transparent_level(image: Any) -> None:
    """Puts a PNG's transparent level into the units of its pixels, which Pillow scales to 8 bits and the level not."""
    level, stored = image.info.get("transparency"), image.tile[0][3] if image.tile else ""
    if isinstance(level, int) and stored in _LEVELS:
        image.info["transparency"] = level * _LEVELS[stored]
    if isinstance(level, tuple) and stored == "RGB;16B":
        raise DamagedImageError("a transparent colour of 16 bits, which is not read; convert it to 8 bits")


_LEVELS = {"L;2": 85, "L;4": 17}  # 255 / the white of 2 and of 4 bits


def _composited(image: Any, background: Colour) -> Pixels:
    """A transparent image over a colour: (alpha * image + (255 - alpha) * background) / 255, rounded to the nearest."""
    if image.mode.startswith("I"):  # 16 bits, one value of which is transparent; Pillow's own conversion would clip it
        clear = np.asarray(image) == image.info.get("transparency")
        return np.where(clear[..., None], np.array(background, dtype=np.uint8), _rgb(image))
    rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)  # which holds 255 * 255 + 127
    alpha = rgba[..., 3:]
    seen = alpha * rgba[..., :3] + (255 - alpha) * np.array(background, dtype=np.uint16) + 127
    return (seen // 255).astype(np.uint8)


def colour_of(values: Sequence[int] | None) -> Colour | None:
    """Three numbers as a colour; None stays. ValueError for other numbers than three of 0 to 255."""
    if values is None:
        return None
    red, green, blue = values
    if not {red, green, blue} <= set(range(256)):
        raise ValueError(f"{values} is no colour: its numbers must be 0 to 255")
    return red, green, blue


def _rgb(image: Any) -> Pixels:
    """Pixels of more than 8 bits are scaled, as DALI does; Pillow would cut them off at 255."""
    if not image.mode.startswith(("I", "F")):
        return np.asarray(image.convert("RGB"))
    return np.repeat(eight_bits(np.asarray(image))[..., None], 3, axis=2)


def eight_bits(pixels: npt.NDArray[Any]) -> Pixels:
    """Pixels as uint8: integers of more bits scaled from 16, floats from [0, 1], uint8 as they are.

    DamagedImageError for floats outside of that.
    """
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        return np.rint(_checked(pixels) * 255).astype(np.uint8)
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)

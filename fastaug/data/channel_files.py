"""Image files of n channels, other numbers than 1 and 3: TIFF, NumPy arrays, and what Pillow reads with transparency.

A file has as many channels as its pixels have values, or it is not used; nothing is converted but 16 bits to 8 and
palettes to RGBA. The form is told by a file's first bytes. TIFF files are read by tifffile, of them the first series:
planes as pages, samples of a pixel together or in planes. `.npy` files hold [H, W, C].
"""

import io
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastaug.data.image_files import (
    BROKEN_IMAGE,
    FORMATS,
    MAX_PIXELS,
    Bytes,
    DamagedImageError,
    Pixels,
    eight_bits,
    problem_of,
    reason_of,
)
from fastaug.errors import MACHINE, DataError

LARGEST = 64  # channels
ENDINGS = (b".npy",)  # of files that are images here, and are none elsewhere

_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TYPES = ("uint8", "uint16", "float32")
_BOMB = f"more than {3 * MAX_PIXELS} values (decompression bomb)"


def reads_channels(channels: int) -> bool:
    """Whether images of so many channels are read here: 1 and 3 come from whatever Pillow and DALI can make RGB."""
    return channels not in (1, 3)


class ChannelFile(NamedTuple):
    """A file that was opened: height, width and channels by its header, and `pixels()`, uint8 [H, W, C]."""

    shape: tuple[int, int, int]
    pixels: Callable[[], Pixels]
    whole: bool  # its bytes are as many as its header asks for; where False, decoding tells


def extent_by_header(file: BinaryIO, size: int, channels: int) -> tuple[int, int]:
    """(height, width) of a file of `size` bytes; DamagedImageError where it cannot be used as `channels` channels."""
    with opened(file, size, channels) as found:
        if not found.whole:
            found.pixels()
        return found.shape[:2]


def decode_channels(data: Bytes, channels: int) -> Pixels:
    """uint8 [H, W, channels] of a file in memory; DamagedImageError where it cannot be used so."""
    with opened(io.BytesIO(data.data), len(data), channels) as found:
        pixels = found.pixels()
        if pixels.shape != found.shape:
            raise DamagedImageError("truncated or corrupt: of another size than its header says")
        return pixels


@contextmanager
def opened(file: BinaryIO, size: int, channels: int) -> Iterator[ChannelFile]:
    """The file as one of `channels` channels; what is wrong with it, then or later, becomes a DamagedImageError.

    DataError where a package that reads such files is not installed, which says nothing about the file.
    """
    head = file.read(len(_NPY))
    file.seek(0)
    open_one = _opened_array if head == _NPY else _opened_tiff if head.startswith(_TIFF) else _opened_picture
    try:
        with open_one(file, size, channels) as found:
            _check(found.shape, channels)
            yield found
    except BROKEN_IMAGE as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise
        raise DamagedImageError(reason_of(error)) from error


def _check(shape: tuple[int, int, int], channels: int) -> None:
    if shape[2] != channels:
        found = f"{shape[2]} channel{'s' if shape[2] != 1 else ''} of {shape[0]} x {shape[1]} pixels"
        raise DamagedImageError(f"{found} where data.channels is {channels}; write it with {channels}, or remove it")
    if min(shape) < 1:
        raise DamagedImageError(f"{shape[0]} x {shape[1]} pixels")
    if math.prod(shape) > 3 * MAX_PIXELS:
        raise DamagedImageError(_BOMB)


def _check_type(kind: Any) -> None:
    if np.dtype(kind).name not in _TYPES:
        raise DamagedImageError(f"pixels of type {np.dtype(kind).name}; convert them to uint8 or uint16")


# ---- NumPy arrays ----


@contextmanager
def _opened_array(file: BinaryIO, size: int, channels: int) -> Iterator[ChannelFile]:  # noqa: ARG001
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise DamagedImageError(f"an .npy file of version {version}; write it by numpy.save")
    shape, _, kind = read[version](file)
    if len(shape) != 3:
        raise DamagedImageError(f"an array {list(shape)}; images are [height, width, channels]")
    _check_type(kind)
    if file.tell() + math.prod(shape) * kind.itemsize > size:
        raise DamagedImageError("truncated or corrupt: shorter than its header says")

    def pixels() -> Pixels:
        file.seek(0)
        return eight_bits(np.load(file, allow_pickle=False))

    yield ChannelFile(shape, pixels, True)


# ---- TIFF ----


@contextmanager
def _opened_tiff(file: BinaryIO, size: int, channels: int) -> Iterator[ChannelFile]:  # noqa: ARG001
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(file, name="image.tif") as tiff:
            yield _tiff_file(tifffile, tiff.series[0], size)
    except tifffile.TiffFileError as error:  # of older versions no ValueError
        raise DamagedImageError(reason_of(error)) from error


def _tiff_file(tifffile: Any, series: Any, size: int) -> ChannelFile:
    stored, axes = series.get_shape(squeeze=False), series.get_axes(squeeze=False)
    shape, order = _layout(stored, axes)
    _check_type(series.dtype)
    _check_codec(tifffile, series.keyframe)
    if None in series.pages:  # which tifffile would fill with zeros
        raise DamagedImageError("truncated or corrupt: a page is missing")

    def pixels() -> Pixels:
        raw = series.asarray(maxworkers=1).reshape(stored)  # older versions leave out axes of length 1
        return eight_bits(raw.squeeze(_singles(stored, axes)).transpose(order))

    return ChannelFile(shape, pixels, _end(series, size) <= size)


def _end(series: Any, size: int) -> int:
    """Where the last byte of a series' pixels is said to be, in a file of `size` bytes; behind its end if unknown."""
    if series.dataoffset is not None:  # all of it in one piece, perhaps with one page that stands for all
        return int(series.dataoffset + series.nbytes)
    ends = (a + b for page in series.pages for a, b in zip(page.dataoffsets, page.databytecounts, strict=True))
    return max(ends, default=size + 1)


def _singles(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """The axes of length 1, besides height and width."""
    return tuple(
        i for i, (length, axis) in enumerate(zip(shape, axes, strict=True)) if length == 1 and axis not in "YX"
    )


def _layout(shape: tuple[int, ...], axes: str) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """(height, width, channels) of a series, and the order that brings its axes to that, those of length 1 left out."""
    singles = _singles(shape, axes)
    kept = [(axis, length) for i, (axis, length) in enumerate(zip(axes, shape, strict=True)) if i not in singles]
    names = "".join(axis for axis, _ in kept)
    if "Y" not in names or "X" not in names or not 2 <= len(names) <= 3:
        raise DamagedImageError(f"axes {axes} {list(shape)}; an image has height, width and channels")
    if len(names) == 2:  # one channel, which is not what is asked for
        return (dict(kept)["Y"], dict(kept)["X"], 1), (0, 1)
    other = next(i for i, axis in enumerate(names) if axis not in "YX")
    order = (names.index("Y"), names.index("X"), other)
    height, width, found = (kept[i][1] for i in order)
    return (height, width, found), order


def _check_codec(tifffile: Any, page: Any) -> None:
    """DataError for a compression that needs a package which is not there."""
    for known, used in ((tifffile.TIFF.DECOMPRESSORS, page.compression), (tifffile.TIFF.UNPREDICTORS, page.predictor)):
        try:
            known[used]
        except KeyError as error:
            said = str(error.args[0])
            if "imagecodecs" not in said:
                raise DamagedImageError(said) from error
            raise DataError(f"a TIFF file: {said}; pip install imagecodecs, or write files without it") from error


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        text = "data.channels: TIFF files of n channels are read by tifffile, which is not installed"
        raise DataError(f"{text}; pip install 'fastaug[tiff]', or write .npy files") from error
    if not (own := logging.getLogger("tifffile")).handlers:
        own.addHandler(logging.NullHandler())  # what it says of a damaged file names no file
    return tifffile


# ---- what Pillow reads: RGBA ----


@contextmanager
def _opened_picture(file: BinaryIO, size: int, channels: int) -> Iterator[ChannelFile]:  # noqa: ARG001
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            if problem := problem_of(image):
                raise DamagedImageError(problem)
            seen_through = image.has_transparency_data and (channels == 4 or image.mode != "LA")
            bands = 4 if seen_through else 3 if image.mode == "P" else len(image.getbands())
            if image.mode == "CMYK":
                raise DamagedImageError("the colours of ink (CMYK), which are no channels; convert it to RGBA")

            def pixels() -> Pixels:
                return np.asarray(image.convert("RGBA") if seen_through else image)

            yield ChannelFile((image.height, image.width, bands), pixels, False)
    except Image.DecompressionBombError as error:
        raise DamagedImageError(reason_of(error)) from error

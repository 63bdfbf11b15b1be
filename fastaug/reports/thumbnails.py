"""Small pictures of the data's images inside of a page: read as they are stored, encoded into the page itself."""

import base64
import os
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastaug.data.channel_files import decode_channels, reads_channels
from fastaug.data.image_files import FORMATS, DamagedImageError, read_image_file
from fastaug.data.index import Index
from fastaug.data.packed.index import PackedIndex
from fastaug.data.shards.layout import ShardIndex

SIDE = 96  # pixels of the longer side
QUALITY = 85


class Thumbnail(NamedTuple):
    """A picture as a data URI, whether it is enlarged, and in place of one that cannot be shown the reason."""

    source: str = ""
    small: bool = False
    problem: str = ""


def thumbnail(index: Index, image: int, side: int = SIDE) -> Thumbnail:
    """The picture of image `image`; a damaged one says so."""
    try:
        return encoded(opened(index, image), side)
    except (OSError, ValueError, IndexError, Image.DecompressionBombError) as error:
        return Thumbnail(problem=f"cannot be shown: {error}")


def encoded(picture: Image.Image, side: int = SIDE) -> Thumbnail:
    """A picture with its longer side of `side` pixels; a smaller one keeps its pixels, and is enlarged by the page."""
    small = max(picture.size) <= side
    file = BytesIO()
    if small:
        picture.save(file, "PNG")
    else:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture.resize(size, Image.Resampling.BOX).save(file, "JPEG", quality=QUALITY)
    kind = "png" if small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}", small)


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def opened(index: Index, image: int) -> Image.Image:
    """An image of the data as it is stored, in RGB: the first three of n channels, of two the first.

    ValueError or OSError where it is damaged.
    """
    try:
        return _opened(index, image)
    except DamagedImageError as error:
        raise ValueError(str(error)) from error


def _opened(index: Index, image: int) -> Image.Image:
    if reads_channels(index.channels):
        return _of_channels(index, image)
    if not isinstance(index, PackedIndex):
        with Image.open(os.path.join(os.fsencode(index.root), index.path(image)), formats=FORMATS) as picture:
            return picture.convert("RGB")
    if isinstance(index, ShardIndex) and index.settings.format == "raw":
        height, width = int(index.heights[image]), int(index.widths[image])
        return Image.fromarray(np.ascontiguousarray(index.pixels(image, 0, 0, height, width)))
    with Image.open(BytesIO(index.encoded(image).tobytes()), formats=FORMATS) as picture:
        return picture.convert("RGB")


def _of_channels(index: Index, image: int) -> Image.Image:
    pixels = decode_channels(read_image_file(index.path(image))[0], index.channels)
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3] if index.channels > 3 else pixels[..., 0])).convert(
        "RGB"
    )

"""Transparent pixels show data.background, the same in every format and on every way from a file to a batch."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastaug.console import Console
from fastaug.data.build import find_index
from fastaug.data.image_files import Colour, DamagedImageError, colour_of, decode_by_pillow, file_for_dali
from fastaug.data.index import load_index
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.shards import shard_loader
from fastaug.data.sampler import Request
from fastaug.data.shards.layout import Settings, open_shards
from fastaug.data.shards.writer import make_shards
from fastaug.errors import DataError

SIDE, INK = 16, (200, 40, 90)
BACK: Colour = (10, 250, 60)
GREY = 64


def rgba(alpha: tuple[int, ...] = (0, 255, 128, 51)) -> Image.Image:
    """One colour, in as many stripes of other transparency."""
    pixels = np.full((SIDE, SIDE, 4), (*INK, 0), dtype=np.uint8)
    pixels[..., 3] = np.repeat(alpha, SIDE // len(alpha))
    return Image.fromarray(pixels)


def grey() -> np.ndarray[Any, Any]:
    """Two levels; the first is to be the transparent one."""
    return np.repeat([GREY, 3 * GREY], SIDE // 2)[None].repeat(SIDE, 0).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def over(ink: tuple[int, ...], alpha: int) -> list[int]:
    return [round((alpha * x + (255 - alpha) * b) / 255) for x, b in zip(ink, BACK, strict=True)]


HALF = {"png": ("PNG", {}), "webp": ("WEBP", {"lossless": True, "exact": True}), "tiff": ("TIFF", {})}
# Files of which one half is clear, the other solid: their colours there.
CLEAR: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "png palette": (lambda: saved(rgba((0, 255)).quantize(8), "PNG"), INK),
    "png palette, one entry": (lambda: palette(), (3 * GREY,) * 3),
    "gif": (lambda: saved(rgba((0, 255)), "GIF"), INK),
    "png grey and alpha": (
        lambda: saved(Image.merge("LA", [Image.new("L", (SIDE, SIDE), 9), halves()]), "PNG"),
        (9,) * 3,
    ),
    "png grey level": (lambda: saved(Image.fromarray(grey()), "PNG", transparency=GREY), (3 * GREY,) * 3),
    "png 16 bits": (
        lambda: saved(Image.fromarray(grey().astype(np.uint16) * 257), "PNG", transparency=257 * GREY),
        (3 * GREY,) * 3,
    ),
    "png colour": (
        lambda: saved(Image.merge("RGB", [Image.fromarray(grey())] * 3), "PNG", transparency=(GREY,) * 3),
        (3 * GREY,) * 3,
    ),
}


def palette() -> bytes:
    image = Image.merge("RGB", [Image.fromarray(grey())] * 3).quantize(2)
    return saved(image, "PNG", transparency=image.getpixel((0, 0)))


def halves() -> Image.Image:
    return rgba((0, 255)).getchannel("A")


def whole(data: bytes, background: Colour | None = BACK) -> np.ndarray[Any, Any]:
    return decode_by_pillow(np.frombuffer(data, np.uint8), "ignore", background)


@pytest.mark.parametrize("kind", HALF)
def test_a_share_of_the_background_shows_through(kind: str) -> None:
    pixels = whole(saved(rgba(), HALF[kind][0], **HALF[kind][1]))
    found = [pixels[0, i * SIDE // 4].tolist() for i in range(4)]
    assert found == [over(INK, alpha) for alpha in (0, 255, 128, 51)]
    assert found[0] == list(BACK)


def test_every_level_of_transparency_is_rounded_to_the_nearest() -> None:
    alpha = np.arange(256).reshape(SIDE, SIDE)
    pixels = np.dstack([np.full((SIDE, SIDE, 3), INK, dtype=np.uint8), alpha.astype(np.uint8)])
    exact = (alpha[..., None] * np.array(INK) + (255 - alpha[..., None]) * np.array(BACK)) / 255
    assert np.abs(whole(saved(Image.fromarray(pixels), "PNG")) - exact).max() <= 0.5


@pytest.mark.parametrize("kind", CLEAR)
def test_clear_pixels_of_every_kind_are_the_background(kind: str) -> None:
    make, solid = CLEAR[kind]
    pixels = whole(make())
    assert (pixels[:, : SIDE // 2] == BACK).all()
    assert (pixels[:, SIDE // 2 :] == solid).all()
    assert file_for_dali(np.frombuffer(make(), np.uint8), "ignore", BACK) is None  # DALI would drop the transparency


def png(bits: int, colour: int, row: bytes, clear: bytes) -> bytes:
    """A PNG of two pixels, as Pillow does not write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0)) + chunk(b"tRNS", clear)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("bits", "row", "level"), [(4, b"\x5a", 5), (2, b"\x60", 1), (1, b"\x40", 0)])
def test_a_transparent_level_of_few_bits_is_found(bits: int, row: bytes, level: int) -> None:
    pixels = whole(png(bits, 0, row, struct.pack(">H", level)))
    assert pixels[0, 0].tolist() == list(BACK)
    assert len(set(pixels[0, 1].tolist())) == 1


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    data = png(16, 2, struct.pack(">6H", 300, 70, 9, 400, 1, 2), struct.pack(">3H", 300, 70, 9))
    with pytest.raises(DamagedImageError, match="a transparent colour of 16 bits, which is not read"):
        whole(data)
    assert whole(data, None).shape == (1, 2, 3)


def test_dali_decodes_what_has_no_transparency() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        data = np.frombuffer(saved(rgba().convert("RGB"), kind), np.uint8)
        assert file_for_dali(data, "ignore", BACK) is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two transparent images, and the same two over BACK in opaque files of the second class."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
    for number, alpha in enumerate([(0, 255, 128, 51), (255, 0)]):
        data = saved(rgba(alpha), "PNG")
        (tmp_path / "set" / "a" / f"{number}.png").write_bytes(data)
        Image.fromarray(whole(data)).save(tmp_path / "set" / "b" / f"{number}.png")
    return tmp_path / "set"


def crop(background: Colour | None) -> Crop:
    return Crop("center", 8, crop_pct=0.7, background=background)


def images(loader: Any) -> torch.Tensor:
    (batch,) = loader.batches([Request(0, np.arange(4))])
    return batch.images


@pytest.mark.parametrize("background", [BACK, None])
def test_loaders_of_files_and_of_shards_give_the_same_pixels(folder: Path, background: Colour | None) -> None:
    loading = Loading(torch.device("cpu"), 4)
    index = load_index(folder, threads=1)
    made = images(DaliLoader(index, crop(background), loading))
    assert made[:2].equal(made[2:]) == (background is not None)
    settings = Settings("raw", SIDE, None, None, "ignore", background)
    make_shards(index, folder.parent / "shards", settings, workers=1, console=Console(False))
    shards = open_shards(folder.parent / "shards", "ignore", background)
    assert images(shard_loader(shards, crop(background), loading)).equal(made)
    make_shards(index, folder.parent / "shards", settings, workers=1, console=Console(False))  # are those already


def test_shards_over_another_background_are_refused(folder: Path) -> None:
    settings = Settings("raw", SIDE, None, None, "ignore", BACK)
    make_shards(load_index(folder, threads=1), folder.parent / "shards", settings, workers=1, console=Console(False))
    with pytest.raises(DataError, match=r"made on the background \[10, 250, 60\]; set data\.background="):
        find_index(folder.parent / "shards", "ignore", False)
    settings = Settings("raw", SIDE, None, None, "ignore")
    make_shards(load_index(folder, threads=1), folder.parent / "plain", settings, workers=1, console=Console(False))
    with pytest.raises(DataError, match=r"made without a background; set data\.background=null"):
        find_index(folder.parent / "plain", "ignore", False, background=BACK)


def test_a_colour_is_three_numbers_of_8_bits() -> None:
    assert (colour_of(None), colour_of([1, 2, 3])) == (None, (1, 2, 3))
    for wrong in ([1, 2], [1, 2, 256]):
        with pytest.raises(ValueError, match=r"colour|unpack"):
            colour_of(wrong)

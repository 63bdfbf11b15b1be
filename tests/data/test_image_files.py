"""What is read from a file, who may decode it, and its colours, whoever does."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastaug.data.image_files import (
    DamagedImageError,
    decode_by_pillow,
    extent_for_pillow,
    file_for_dali,
    read_image_file,
)
from fastaug.data.index import load_index
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.sampler import Request

LEFT, RIGHT, GREY = (200, 60, 20), (20, 120, 220), (60, 190)
WIDTH, HEIGHT = 64, 48


def picture() -> Image.Image:
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = LEFT, RIGHT
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def grey(dtype: Any, white: float) -> Image.Image:
    values = np.empty((HEIGHT, WIDTH))
    values[:, : WIDTH // 2], values[:, WIDTH // 2 :] = (value / 255 * white for value in GREY)
    return Image.fromarray(values.astype(dtype))


def stray_bytes(jpeg: bytes) -> bytes:
    return jpeg[:20] + b"\0\1\2" + jpeg[20:]


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}
COLOURED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(picture(), "JPEG", **JPEG),
    "jpeg with stray bytes": lambda: stray_bytes(saved(picture(), "JPEG", **JPEG)),
    "png": lambda: saved(picture(), "PNG"),
    "png palette": lambda: saved(picture().quantize(4), "PNG"),
    "png alpha": lambda: saved(picture().convert("RGBA"), "PNG"),
    "gif": lambda: saved(picture().quantize(4), "GIF"),
    "gif animated": lambda: saved(
        picture().quantize(4), "GIF", save_all=True, append_images=[picture().rotate(180).quantize(4)]
    ),
    "webp": lambda: saved(picture(), "WEBP", lossless=True),
    "webp turned": lambda: saved(picture(), "WEBP", lossless=True, exif=turned()),
    "webp animated": lambda: saved(
        picture(), "WEBP", lossless=True, save_all=True, append_images=[picture().rotate(180)]
    ),
    "bmp": lambda: saved(picture(), "BMP"),
    "tiff": lambda: saved(picture(), "TIFF"),
    "tiff lzw": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
    "tiff pages": lambda: saved(picture(), "TIFF", save_all=True, append_images=[picture().rotate(180)]),
    "ppm": lambda: saved(picture(), "PPM"),
    "avif": lambda: saved(picture(), "AVIF", quality=95, subsampling="4:4:4"),
    "jpeg 2000": lambda: saved(picture(), "JPEG2000"),
}
GREYS: dict[str, Callable[[], bytes]] = {
    "png 16 bits": lambda: saved(grey(np.uint16, 65535), "PNG"),
    "tiff 16 bits": lambda: saved(grey(np.uint16, 65535), "TIFF"),
    "tiff float": lambda: saved(grey(np.float32, 1), "TIFF"),
    "pgm 12 bits": lambda: b"P5 64 48 4095\n" + np.asarray(grey(np.uint16, 4095)).astype(">u2").tobytes(),
    "pgm 16 bits": lambda: b"P5 64 48 65535\n" + np.asarray(grey(np.uint16, 65535)).astype(">u2").tobytes(),
}


def loaded(tmp_path: Path, files: list[bytes], exif: str = "ignore") -> tuple[dict[int, torch.Tensor], dict[int, str]]:
    """The images of a folder of these files by the loader, and what it skipped."""
    for label in "ab":
        (tmp_path / label).mkdir()
    (tmp_path / "b" / "0.png").write_bytes(saved(picture(), "PNG"))
    for i, content in enumerate(files):
        (tmp_path / "a" / f"{i:03}.jpg").write_bytes(content)
    index = load_index(tmp_path, exif=exif, threads=1)
    loader = DaliLoader(index, Crop("whole", 32, exif=exif), Loading(torch.device("cpu"), 64, threads=2))
    (batch,) = loader.batches([Request(0, np.arange(len(files)))])
    return dict(zip(batch.ids.tolist(), batch.images, strict=True)), loader.skipped


def test_every_kind_has_its_colours_and_the_first_frame(tmp_path: Path) -> None:
    images, skipped = loaded(tmp_path, [make() for make in COLOURED.values()])
    assert skipped == {}
    for i, kind in enumerate(COLOURED):
        halves = images[i][:, :12].float().mean((0, 1)), images[i][:, 20:].float().mean((0, 1))
        for half, colour in zip(halves, (LEFT, RIGHT), strict=True):
            assert (half - torch.tensor(colour)).abs().max() < 6, kind


def test_more_than_8_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    images, skipped = loaded(tmp_path, [make() for make in GREYS.values()])
    assert skipped == {}
    for i, kind in enumerate(GREYS):
        assert (images[i][:, :12].float() - GREY[0]).abs().max() <= 1, kind
        assert (images[i][:, 20:].float() - GREY[1]).abs().max() <= 1, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_picture_is_turned_when_that_is_asked_for(tmp_path: Path, kind: str) -> None:
    options = {"tiffinfo": {0x0112: 6}} if kind == "TIFF" else {"exif": turned()}
    images, skipped = loaded(tmp_path, [saved(picture(), kind, **options)], "apply")
    assert skipped == {}
    assert (images[0][:12].float().mean((0, 1)) - torch.tensor(LEFT)).abs().max() < 12  # left is up now
    assert (images[0][20:].float().mean((0, 1)) - torch.tensor(RIGHT)).abs().max() < 12


def test_pixels_whose_white_is_not_known_are_refused(tmp_path: Path) -> None:
    files = [saved(grey(np.int32, 2**31 - 1), "TIFF"), saved(grey(np.float32, 255), "TIFF")]
    files.append(saved(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"))
    images, skipped = loaded(tmp_path, files)
    assert images == {}
    assert skipped[0] == "pixels of 32 bits, whose white is not known; convert it to 8 or 16 bits"
    assert skipped[1] == skipped[2] == "floating-point pixels outside [0, 1], whose white is not known; scale them"


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "GIF", "AVIF"])
def test_dali_is_not_given_what_it_does_not_survive(kind: str) -> None:
    data = np.frombuffer(saved(picture(), kind), dtype=np.uint8)
    assert file_for_dali(data, "ignore") is None
    assert extent_for_pillow(data, "ignore") == (HEIGHT, WIDTH)
    assert decode_by_pillow(data, "ignore").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "PPM"]),
    st.integers(2, 300),
    st.binary(max_size=5),
    st.integers(0, 9),
)
@settings(max_examples=200)
def test_no_header_ends_the_process_or_gets_a_size_that_pillow_does_not_see(
    kind: str, place: int, new: bytes, gone: int
) -> None:
    content = saved(picture(), kind)
    data = np.frombuffer(content[:place] + new + content[place + gone :], dtype=np.uint8)
    _, extent = file_for_dali(data, "ignore") or (None, None)
    assert extent is None or min(extent) > 0
    shape, reason = outcome(data)
    assert bool(shape) != bool(reason)
    assert not reason.endswith(":")
    assert not (extent and shape) or extent == shape


def outcome(data: np.ndarray) -> tuple[tuple[int, ...], str]:
    """The size of a file that Pillow decodes, or why it does not."""
    try:
        return decode_by_pillow(data, "ignore").shape[:2], ""
    except DamagedImageError as error:
        return (), str(error).strip()


def test_a_bomb_is_refused_whatever_it_was_when_it_was_indexed() -> None:
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    content += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + saved(picture(), "PNG")[33:]
    data = np.frombuffer(content, dtype=np.uint8)
    assert file_for_dali(data, "ignore") is None
    with pytest.raises(DamagedImageError, match="decompression bomb"):
        extent_for_pillow(data, "ignore")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_bytes(b"1234")
    for name, reason in (("pipe", "not a regular"), ("empty", "empty file"), ("none", "cannot be opened: No such")):
        with pytest.raises(DamagedImageError, match=reason):
            read_image_file(os.fsencode(tmp_path / name))
    with pytest.raises(DamagedImageError, match="not a regular file"):
        read_image_file(os.fsencode(tmp_path))
    data, stamp = read_image_file(os.fsencode(tmp_path / "file"))
    assert (data.tobytes(), stamp) == (b"1234", (4, (tmp_path / "file").stat().st_mtime_ns))

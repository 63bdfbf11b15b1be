"""Files of n channels: the same pixels in every form, and by name what is damaged or has other channels."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from fastaug.data.channel_files import decode_channels
from fastaug.data.image_files import DamagedImageError
from fastaug.data.image_headers import Status, screen
from fastaug.data.index import load_index
from fastaug.data.listing import Listing
from fastaug.errors import DataError
from tests.data.channel_folders import FORMS, channel_folder, write


@pytest.fixture
def pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (11, 7, 5), np.uint8)


def of_file(file: Path, channels: int) -> npt.NDArray[np.uint8]:
    return decode_channels(np.frombuffer(file.read_bytes(), np.uint8), channels)


def reason(file: Path, channels: int) -> str:
    """Why the header pass leaves a file out; decoding must say the same."""
    found = screen(os.fsencode(file), "ignore", channels)
    with pytest.raises(DamagedImageError) as error:
        of_file(file, channels)
    assert str(error.value) == found.reason != ""
    return found.reason


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [2, 5])
def test_every_form_has_the_same_pixels(
    tmp_path: Path, pixels: npt.NDArray[np.uint8], form: str, channels: int
) -> None:
    file = write(tmp_path / form, form, pixels[..., :channels])
    assert screen(os.fsencode(file), "ignore", channels) == (11, 7, "")
    assert np.array_equal(of_file(file, channels), pixels[..., :channels])


def test_16_bits_are_rounded_and_floats_are_of_0_to_1(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 6, 5), np.uint16)
    np.save(tmp_path / "deep.npy", deep)
    assert np.array_equal(of_file(tmp_path / "deep.npy", 5), np.rint(deep / 257).astype(np.uint8))
    np.save(tmp_path / "float.npy", (deep / 65535).astype(np.float32))
    assert np.array_equal(of_file(tmp_path / "float.npy", 5), np.rint(deep / 257).astype(np.uint8))
    np.save(tmp_path / "large.npy", deep.astype(np.float32))
    with pytest.raises(DamagedImageError, match=r"floating-point pixels outside \[0, 1\]"):
        of_file(tmp_path / "large.npy", 5)


@pytest.mark.parametrize("kind", ["rgba.png", "rgba.webp", "palette.png", "grey.png"])
def test_transparency_is_the_fourth_channel(tmp_path: Path, kind: str) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
    drawn[..., 3] = 255 * (drawn[..., 3] > 99)
    image = Image.fromarray(drawn)
    if kind == "palette.png":
        image = image.quantize(16)
    if kind == "grey.png":
        image = image.convert("LA")
    image.save(tmp_path / kind, lossless=True, exact=True)
    assert np.array_equal(of_file(tmp_path / kind, 4), np.asarray(image.convert("RGBA")))
    assert screen(os.fsencode(tmp_path / kind), "ignore", 4) == (9, 8, "")


def test_other_channels_are_named_with_both_counts(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    said = "5 channels of 11 x 7 pixels where data.channels is 4; write it with 4, or remove it"
    for form in FORMS:
        assert reason(write(tmp_path / form, form, pixels), 4) == said
    tifffile.imwrite(tmp_path / "pages.tif", pixels, photometric="minisblack")  # rows as pages
    assert "where data.channels is 5" in reason(tmp_path / "pages.tif", 5)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png")
    assert "3 channels of 11 x 7 pixels where data.channels is 4" in reason(tmp_path / "rgb.png", 4)
    tifffile.imwrite(tmp_path / "grey.tif", pixels[..., 0])
    assert "1 channel of 11 x 7 pixels" in reason(tmp_path / "grey.tif", 5)


def test_what_is_no_image_of_channels_is_named(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    wrong = {
        "an array [11, 7]; images are [height, width, channels]": pixels[..., 0],
        "pixels of type int64; convert them to uint8 or uint16": pixels.astype(np.int64),
        "pixels of type complex64": pixels.astype(np.complex64),
        "0 x 7 pixels": pixels[:0],
    }
    for text, array in wrong.items():
        np.save(tmp_path / "x.npy", array)
        assert text in reason(tmp_path / "x.npy", 5)
    np.save(tmp_path / "x.npy", np.array([{}] * 5).reshape(1, 1, 5), allow_pickle=True)
    assert "pixels of type object" in reason(tmp_path / "x.npy", 5)
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\0\x0a\0{'shape': (")
    assert reason(tmp_path / "x.npy", 5)
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((2, 3, 6, 7), np.uint8), photometric="minisblack")
    assert "an image has height, width and channels" in reason(tmp_path / "x.tif", 5)
    tifffile.imwrite(tmp_path / "x.tif", pixels.transpose(2, 0, 1).astype(np.int32), photometric="minisblack")
    assert "pixels of type int32" in reason(tmp_path / "x.tif", 5)
    Image.fromarray(pixels[..., :4]).convert("CMYK").save(tmp_path / "x.jpg")
    assert "ink (CMYK)" in reason(tmp_path / "x.jpg", 4)
    (tmp_path / "x.tif").write_bytes(b"no image")
    assert reason(tmp_path / "x.tif", 5) == "no image header that can be read"


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_off_is_damaged_or_whole(tmp_path: Path, pixels: npt.NDArray[np.uint8], form: str) -> None:
    whole = write(tmp_path / form, form, pixels).read_bytes()
    for length in range(7, len(whole), 61):
        (tmp_path / form).write_bytes(whole[:length])
        if screen(os.fsencode(tmp_path / form), "ignore", 5).reason:
            reason(tmp_path / form, 5)
        else:  # what is missing is a page's header that the first one makes needless
            assert form == "pages.tif"
            assert length > pixels.size
            assert np.array_equal(of_file(tmp_path / form, 5), pixels)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**20, 5)})
    (tmp_path / "x.npy").write_bytes(header.getvalue())
    assert "shorter than its header says" in reason(tmp_path / "x.npy", 5)
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(tmp_path / "x.tif", mode="r+b") as tiff:
        for side in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[side].overwrite(30_000)
    assert "decompression bomb" in reason(tmp_path / "x.tif", 5)


def test_a_missing_package_ends_the_run_and_is_no_damage(
    tmp_path: Path, pixels: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = channel_folder(tmp_path / "set", 5)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"read by tifffile, which is not installed; pip install 'fastaug\[tiff\]'"):
        load_index(root, threads=1, listing=Listing(channels=5))
    monkeypatch.undo()
    page = bytearray(write(tmp_path / "planes.tif", "planes", pixels).read_bytes())
    at = page.index((259).to_bytes(2, sys.byteorder) + (3).to_bytes(2, sys.byteorder)) + 8
    page[at : at + 2] = (50002).to_bytes(2, sys.byteorder)  # JPEG XL
    (tmp_path / "planes.tif").write_bytes(page)
    with pytest.raises(DataError, match="requires the 'imagecodecs' package; pip install imagecodecs"):
        screen(os.fsencode(tmp_path / "planes.tif"), "ignore", 5)


def test_an_index_of_channels_is_one_of_its_own(tmp_path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    root = channel_folder(tmp_path / "set", 5)
    write(root / "train" / "class0" / "wrong.npy", "deep", pixels[..., :2])
    for _ in range(2):  # from the cache too
        index = load_index(root, threads=1, listing=Listing(channels=5))
        (bad,) = np.flatnonzero(index.status == Status.DAMAGED)
        assert (len(index), index.channels) == (21, 5)
        assert index.path(bad).endswith(b"wrong.npy")
        assert "2 channels of 11 x 7 pixels where data.channels is 5" in index.reasons[int(bad)]
    of_two = load_index(root, threads=1, listing=Listing(channels=2))
    assert [of_two.path(i) for i in np.flatnonzero(of_two.status == Status.OK)] == [index.path(bad)]
    usual = load_index(root, threads=1)
    assert usual.channels == 3
    assert not any(path.endswith(b".npy") for path in usual.paths)

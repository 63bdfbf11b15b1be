import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastaug.data import crop_windows as windows
from fastaug.data.index import Index, load_index
from fastaug.data.shards.encode import Picture, Preparer, stored_size
from fastaug.errors import DataError

from ..conftest import settings

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(1, 600))
def test_sizes_are_never_larger_and_those_of_an_evaluation(height: int, width: int, short: int) -> None:
    tall, wide = stored_size(height, width, short)
    assert min(tall, wide) == min(height, width, short)
    assert tall <= height
    assert wide <= width
    if min(height, width) > short:
        expected = windows.center(np.array([height]), np.array([width]), short, 1.0).size[0]
        assert (tall, wide) == tuple(expected.tolist())
    else:
        assert (tall, wide) == (height, width)


def pixels_of(picture: Picture) -> np.ndarray:
    if picture.start:
        return np.load(io.BytesIO(picture.payload))
    return np.asarray(Image.open(io.BytesIO(picture.payload)).convert("RGB"))


def original(index: Index, id: int) -> Image.Image:
    return Image.open(index.path(id).decode()).convert("RGB")


def test_raw_images_that_fit_are_the_decoded_ones(jpeg_folder: Callable[..., Path]) -> None:
    index = load_index(jpeg_folder(images=4, kind="png"), threads=1)
    for picture in Preparer(index, settings("raw", 500))(np.arange(8)):
        assert (pixels_of(picture) == np.asarray(original(index, picture.id))).all()
        assert (picture.height, picture.width) == (index.heights[picture.id], index.widths[picture.id])
        assert not picture.resized


@pytest.mark.parametrize(("format", "limit"), [("raw", 1.0), ("jpeg", 6.0)])
def test_larger_images_are_resized_with_antialiasing(index: Index, format: str, limit: float) -> None:
    for picture in Preparer(index, settings(format, 20))(np.array([5, 0, 17])):
        size = (picture.width, picture.height)
        assert min(size) == 20
        assert picture.resized
        reference = np.asarray(original(index, picture.id).resize(size, Image.Resampling.BILINEAR), dtype=float)
        assert np.abs(pixels_of(picture) - reference).mean() < limit


def test_pictures_come_in_the_order_of_the_ids(index: Index) -> None:
    ids = np.array([40, 3, 22, 7])
    assert [picture.id for picture in Preparer(index, settings())(ids)] == ids.tolist()


def test_jpegs_that_fit_are_copied_and_others_encoded(jpeg_folder: Callable[..., Path]) -> None:
    root = jpeg_folder(images=2)
    Image.open(root / "class0/000.jpg").save(root / "class0/000.png")
    index = load_index(root, threads=1)
    for picture in Preparer(index, settings("jpeg", 500, quality=70))(np.arange(len(index))):
        file = Path(index.path(picture.id).decode())
        assert picture.copied == (file.suffix == ".jpg")
        assert (picture.payload == file.read_bytes()) == picture.copied
        assert picture.payload[:2] == b"\xff\xd8"
        assert not picture.resized


def test_quality_is_that_of_the_jpegs_written(index: Index) -> None:
    low, high = (len(Preparer(index, settings("jpeg", 40, quality=q))(np.array([0]))[0].payload) for q in (20, 95))
    assert low < high / 2


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_an_orientation_is_applied_once_or_not_at_all(jpeg_folder: Callable[..., Path], format: str) -> None:
    root = jpeg_folder(images=2)
    file = root / "class0/000.jpg"
    upright = Image.open(file).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    upright.save(file, exif=turned, quality=100, subsampling=0)
    for exif, expected in (("ignore", upright), ("apply", upright.transpose(Image.Transpose.ROTATE_270))):
        index = load_index(root, exif=exif, threads=1)
        (picture,) = Preparer(index, settings(format, 500, exif=exif))(np.array([0]))
        assert (picture.width, picture.height) == expected.size == (index.widths[0], index.heights[0])
        assert np.abs(pixels_of(picture).astype(float) - np.asarray(expected)).mean() < 6
        if format == "jpeg" and exif == "apply":
            assert not Image.open(io.BytesIO(picture.payload)).getexif()


def test_damaged_images_are_named_and_their_neighbours_intact(index: Index) -> None:
    prepare = Preparer(index, settings())
    whole = prepare(np.arange(8))
    files = [Path(index.path(id).decode()) for id in range(8)]
    files[1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size // 2])
    files[3].write_bytes(b"")
    files[4].write_bytes(b"not an image at all")
    files[6].unlink()
    found = prepare(np.arange(8))
    assert [picture.id for picture in found if picture.reason] == [1, 3, 4, 6]
    assert found[3].reason == "empty file"
    assert found[6].reason == "cannot be opened: No such file or directory"
    assert [found[i] for i in (0, 2, 5, 7)] == [whole[i] for i in (0, 2, 5, 7)]
    assert not any(found[i].payload for i in (1, 3, 4, 6))
    assert prepare(np.arange(8, 16)) == Preparer(index, settings())(np.arange(8, 16))


def test_trouble_of_the_storage_is_not_damage(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DataError, match=r"000\.jpg cannot be read \(Input/output error\); check the storage"):
        Preparer(index, settings())(np.arange(8))


def test_what_pillow_has_to_decode_is_an_image_like_the_others(jpeg_folder: Callable[..., Path]) -> None:
    root = jpeg_folder(classes=2, images=4)
    colour = Image.new("RGB", (40, 30), (200, 10, 60))
    colour.quantize(4).save(root / "class0" / "000.jpg", "GIF")
    colour.save(root / "class0" / "001.jpg", "TIFF")
    index = load_index(root, threads=1)
    found = Preparer(index, settings())(np.arange(4))
    assert [picture.reason for picture in found] == [""] * 4
    for picture in found[:2]:
        assert np.abs(pixels_of(picture).astype(int) - [200, 10, 60]).max() <= 4

"""The loader of n channels: windows and pixels as those of the loader of colours, each channel as if it were alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastaug.batch import Batch
from fastaug.data.build import DataParts, build_loader, find_index, synthetic_parts
from fastaug.data.index import Index, load_index
from fastaug.data.listing import Listing
from fastaug.data.loaders.base import Crop, Loader, Loading
from fastaug.data.packed.index import PackedSet
from fastaug.data.packed.records import NO_KEYS
from fastaug.data.sampler import Request
from fastaug.data.splits import make_splits
from fastaug.errors import DataError
from tests.data.channel_folders import channel_folder, write

CPU = torch.device("cpu")


def parts_of(index: Index) -> DataParts:
    return DataParts(index.classes, make_splits(index, seed=0), index)


def first_batch(parts: DataParts, crop: Crop, request: Request, *, resident: bool) -> tuple[Loader, Batch]:
    loader = build_loader(parts, request.ids, crop, Loading(CPU, 16), resident=resident)
    (batch,) = loader.batches([request])
    return loader, batch


@pytest.fixture
def two_ways(jpeg_folder: Callable[..., Path], tmp_path: Path) -> tuple[DataParts, DataParts]:
    """The same pixels as PNG files of three channels, and as arrays of six: these, and these upside down."""
    root, other = jpeg_folder(splits=("train", "val")), tmp_path / "six"
    for path in sorted(root.rglob("*.jpg")):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        path.unlink()
        twin = other / path.relative_to(root)
        twin.parent.mkdir(parents=True, exist_ok=True)
        write(twin.with_suffix(".npy"), "fortran", np.concatenate([pixels, 255 - pixels], 2))
    return parts_of(load_index(root, threads=1)), parts_of(load_index(other, threads=1, listing=Listing(channels=6)))


@pytest.mark.parametrize("kind", ["rrc", "center", "whole"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_channels_are_cut_and_resized_as_colours_are(
    two_ways: tuple[DataParts, DataParts], kind: str, interpolation: str
) -> None:
    crop, request = Crop(kind, 24, seed=3, interpolation=interpolation), Request(2, np.arange(9, dtype=np.int64))
    batches = []
    for parts, channels, threads in zip(two_ways, (3, 6), (1, 3), strict=True):
        own, loading = replace(crop, channels=channels), Loading(CPU, 16, threads)
        batches += build_loader(parts, parts.splits.train, own, loading).batches([request])
    three, six = batches
    assert six.images.shape == (9, 24, 24, 6)
    assert six.images[..., :3].equal(three.images)
    assert (six.images[..., 3:].int() + three.images - 255).abs().max() <= 1  # rounded the other way
    assert all(x.equal(y) for x, y in zip(six[1:], three[1:], strict=True))


def test_a_resident_set_is_the_same_and_damaged_images_are_left_out(tmp_path: Path) -> None:
    root = channel_folder(tmp_path / "set", 13)
    write(root / "train" / "class0" / "0-pages.tif", "pages", np.zeros((20, 20, 12), np.uint8))
    index = load_index(root, threads=1, listing=Listing(channels=13))
    cut = root / "train" / "class1" / "3-deep.npy"
    cut.write_bytes(cut.read_bytes()[:-1])  # after it was indexed
    parts = parts_of(index)
    crop, request = Crop("whole", 16, channels=13), Request(0, parts.splits.train)
    batches = []
    for resident in (False, True):
        with pytest.warns(UserWarning, match=r"3-deep.npy was changed since it was indexed"):
            loader, batch = first_batch(parts, crop, request, resident=resident)
        batches.append(batch)
        assert sorted(index.path(i).rsplit(b"/", 1)[1] for i in loader.skipped) == [b"0-pages.tif", b"3-deep.npy"]
    assert batches[0].images.shape == (8, 16, 16, 13)
    assert all(x.equal(y) for x, y in zip(*batches, strict=True))


def test_packed_sets_have_no_channels() -> None:
    with pytest.raises(DataError, match=r"data.channels: 5 channels are read from single files, and .* is packed"):
        find_index(PackedSet("wds", "/nowhere", NO_KEYS), "ignore", False, Listing(channels=5))


def test_random_images_have_the_channels_that_are_asked_for() -> None:
    parts, request = synthetic_parts(8, 2, 4), Request(0, np.arange(4))
    (batch,) = build_loader(parts, request.ids, Crop("whole", 8, channels=5), Loading(CPU)).batches([request])
    assert batch.images.shape == (4, 8, 8, 5)

"""The index of a packed set with the loader on it."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from fastaug.console import Console
from fastaug.data.build import DataParts, build_loader
from fastaug.data.index import Index
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.packed.index import PackedSet, Stretch, load_packed
from fastaug.data.sampler import Request
from fastaug.data.shards.layout import Settings, open_shards
from fastaug.data.shards.writer import make_shards
from fastaug.data.splits import make_splits
from fastaug.errors import DataError

from .conftest import Picture, split_of, write_wds

CROP = Crop("rrc", 32, seed=1)


def batches(index: Index, requests: list[Request]) -> list[tuple[list[int], torch.Tensor]]:
    parts = DataParts(index.classes, make_splits(index, seed=0), index)
    loader = build_loader(parts, parts.splits.train, CROP, Loading(torch.device("cpu"), largest_batch=4))
    return [(batch.ids.tolist(), batch.images) for batch in loader.batches(iter(requests))]


def test_batches_have_the_pixels_of_the_files_from_any_batch_on(
    tmp_path: Path, folder: Index, in_order: list[Picture]
) -> None:
    damaged = in_order[6]._replace(content=in_order[6].content[:200])  # is left out
    root = write_wds(tmp_path, [*in_order[:6], damaged, *in_order[7:]], tars=1)
    index = load_packed(PackedSet("wds", str(root)), threads=1)
    requests = [Request(3, np.array(ids)) for ids in ([5, 2, 9, 0], [11, 6, 1, 7], [3, 4, 8, 10])]
    packed = batches(index, requests)
    whole = batches(folder, [request.keep(request.ids != 6) for request in requests])
    assert [ids for ids, _ in packed] == [[5, 2, 9, 0], [11, 1, 7], [3, 4, 8, 10]] == [ids for ids, _ in whole]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(packed, whole, strict=True))
    later = batches(index, requests[1:])
    assert torch.equal(later[0][1], packed[1][1])


def test_a_stretch_is_a_file_of_its_own(tmp_path: Path, pictures: list[Picture]) -> None:
    index = load_packed(PackedSet("wds", str(write_wds(tmp_path, pictures))), threads=1)
    length = int(index.lengths[2])
    stretch = Stretch(index.files, int(index.shard[2]), int(index.offsets[2]), length)
    content = index.encoded(2).tobytes()
    assert stretch.read() == content
    assert stretch.read(1) == b""
    assert stretch.seek(-3, os.SEEK_END) == length - 3
    assert stretch.read(99) == content[-3:]
    stretch.seek(5)
    assert stretch.seek(2, os.SEEK_CUR) == 7
    assert stretch.read(4) == content[7:11]


def test_a_tar_that_is_cut_while_in_use_is_named(tmp_path: Path, pictures: list[Picture]) -> None:
    index = load_packed(PackedSet("wds", str(write_wds(tmp_path, pictures))), threads=1)
    os.truncate(tmp_path / "val-001.tar", 600)
    with pytest.raises(DataError, match=r"val-001.tar cannot be read .* it is indexed anew"):
        index.encoded(len(index) - 1)


def test_a_broken_cache_file_is_made_anew(tmp_path: Path, pictures: list[Picture]) -> None:
    packed = PackedSet("wds", str(write_wds(tmp_path / "set", pictures)))
    first = load_packed(packed, threads=1, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match=rf"{file.name} cannot be read and is made anew \(BadZipFile"):
        again = load_packed(packed, threads=1, cache=tmp_path / "cache")
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.offsets, again.offsets)


def test_splits_without_train_are_refused(tmp_path: Path, pictures: list[Picture]) -> None:
    write_wds(tmp_path, split_of(pictures, "val"))
    with pytest.raises(DataError, match=r"has the splits val, but none to train on"):
        load_packed(PackedSet("wds", str(tmp_path)), threads=1)


def test_shards_are_made_of_a_packed_set(tmp_path: Path, in_order: list[Picture]) -> None:
    index = load_packed(PackedSet("wds", str(write_wds(tmp_path / "set", in_order, tars=1))), threads=1)
    settings = Settings("jpeg", 500, 90, None, "ignore")
    make_shards(index, tmp_path / "shards", settings, workers=1, console=Console(False))
    shards = open_shards(tmp_path / "shards")
    assert np.array_equal(shards.labels, index.labels)
    copied = [id for id, picture in enumerate(in_order) if picture.name.endswith("jpg")]
    assert all(shards.encoded(id).tobytes() == in_order[id].content for id in copied)


def test_the_limit_on_open_files_is_raised_where_a_set_has_many(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path, pictures)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        load_packed(PackedSet("wds", str(root)), threads=1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 4 + 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

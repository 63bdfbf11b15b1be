import fcntl
import hashlib
import io
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastaug.console import Console
from fastaug.data.image_headers import Status
from fastaug.data.index import Folder, Index, load_index
from fastaug.data.shards.layout import ShardIndex, open_shards, read_manifest
from fastaug.data.shards.tar_parts import plan
from fastaug.data.shards.writer import counts, make_shards, verify
from fastaug.data.splits import make_splits
from fastaug.errors import DataError, StorageError

from ..conftest import MakeShards, settings


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@given(st.lists(st.sampled_from(list(Folder)), min_size=1, max_size=60), st.integers(1, 20))
def test_a_plan_holds_every_id_once_by_folder_in_shards_of_equal_size(folders: list[Folder], size: int) -> None:
    none = np.zeros(len(folders), np.int64)
    index = Index(Path("x"), ("a", "b"), [], none, none, none, none, np.array(folders), {})  # type: ignore[arg-type]
    planned = plan(index, size)
    assert np.sort(np.concatenate([ids for _, ids in planned])).tolist() == list(range(len(folders)))
    for folder in Folder:
        sizes = [len(ids) for name, ids in planned if name.startswith(f"{folder.name.lower()}-")]
        assert sum(sizes) == folders.count(folder)
        assert len(sizes) == -(-folders.count(folder) // size)
        assert not sizes or max(sizes) - min(sizes) <= 1
    for name, ids in planned:
        assert len({folders[i] for i in ids}) == 1
        assert name.startswith(("all", "train")) or (np.diff(ids) > 0).all()


def test_classes_are_mixed_over_the_training_shards(index: Index) -> None:
    for name, ids in plan(index, 12):
        assert len(set(index.labels[ids].tolist())) == (2 if name.startswith("train") else 1)


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_the_index_is_that_of_the_source(index: Index, make: MakeShards, format: str) -> None:
    shards = make(index, format)
    assert list(shards.paths) == list(index.paths)
    assert shards.classes == index.classes
    for column in ("labels", "folders", "status"):
        assert getattr(shards, column).tolist() == getattr(index, column).tolist()
        assert getattr(shards, column).dtype == getattr(index, column).dtype
    ours, theirs = (make_splits(one, seed=3, meta=0.2, select=0.2) for one in (shards, index))
    for role in ("train", "meta", "select", "test"):
        assert ours.of(role).tolist() == theirs.of(role).tolist()


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_other_readers_find_pictures_and_labels_in_the_tar_files(index: Index, make: MakeShards, format: str) -> None:
    shards = make(index, format, shard_size=9)
    seen = Counter[int]()
    for number, shard in enumerate(shards.shards):
        path = shards.root / shard.name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert len(members) == 2 * shard.images
            for picture, label in zip(members[::2], members[1::2], strict=True):
                key, suffix = picture.name.split(".")
                assert (label.name, suffix) == (f"{key}.cls", "npy" if format == "raw" else "jpg")
                id = int(key)
                seen[id] += 1
                assert shards.shard[id] == number
                assert int(tar.extractfile(label).read()) == index.labels[id]  # type: ignore[union-attr]
                data = tar.extractfile(picture).read()  # type: ignore[union-attr]
                size = (int(shards.heights[id]), int(shards.widths[id]))
                if format == "raw":
                    pixels = np.load(io.BytesIO(data))
                    assert pixels.shape == (*size, 3)
                    assert (shards.pixels(id, 0, 0, *size) == pixels).all()
                    assert (shards.pixels(id, 3, 5, 11, 7) == pixels[3:14, 5:12]).all()
                else:
                    assert shards.encoded(id).tobytes() == data
                    assert Image.open(io.BytesIO(data)).size == size[::-1]
    assert seen == Counter(range(48))


def test_bytes_do_not_depend_on_workers_or_time(index: Index, make: MakeShards) -> None:
    first, second = make(index, workers=1, out="a"), make(index, workers=3, out="b")
    assert contents(first.root) == contents(second.root)


def test_damaged_images_keep_their_place(index: Index, make: MakeShards) -> None:
    broken = Path(index.path(30).decode())
    broken.write_bytes(broken.read_bytes()[:200])
    known = replace(index, status=index.status.copy(), reasons={4: "as screened"})
    known.status[4] = Status.DAMAGED
    shards = make(known)
    assert np.flatnonzero(shards.status == Status.DAMAGED).tolist() == [4, 30]
    assert list(shards.reasons) == [4, 30]
    assert shards.reasons[4] == "as screened"
    assert shards.reasons[30]
    assert shards.lengths[[4, 30]].tolist() == [0, 0]
    assert (np.delete(shards.lengths, [4, 30]) > 0).all()
    assert len(shards) == 48
    rows = counts(shards)
    assert (rows["images"], rows["damaged"], rows["of"]) == ("46", "2", "48")


def test_counts(index: Index, make: MakeShards) -> None:
    rows = counts(make(index, "jpeg", 60))
    large = int((np.minimum(index.heights, index.widths) > 60).sum())
    assert (rows["resized"], rows["copied"], rows["encoded at their size"]) == (str(large), str(48 - large), "0")
    assert 0 < large < 48


def test_nothing_is_written_again(index: Index, make: MakeShards) -> None:
    first = make(index)
    before = stamps(first.root)
    after = stamps(make(index).root)
    assert {name for name in after if after[name] != before.get(name)} <= {".lock"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil, "its SHA-256 is not the one that was written: altered"),
        (lambda path: os.truncate(path, 600), "600 bytes, not"),
        (Path.unlink, "cannot be read (No such file or directory)"),
    ],
)
def test_a_broken_shard_is_found_and_written_again_alone(
    index: Index, make: MakeShards, damage, message: str, capsys
) -> None:
    root = make(index).root
    whole, before = contents(root), stamps(root)
    damage(root / "train-00001.tar")
    (problem,) = verify(root, workers=1, console=Console(False)).items()
    assert problem[0] == "train-00001.tar"
    assert problem[1].startswith(message)
    make_shards(index, root, settings(), workers=1, console=Console(True))
    assert "train-00001.tar" in capsys.readouterr().out
    assert contents(root) == whole
    after = stamps(root)
    assert {name for name in after if after[name] != before[name] and name.endswith("tar")} == {"train-00001.tar"}
    assert verify(root, workers=2, console=Console(False)) == {}


def test_a_folder_without_its_table_is_made_again(index: Index, make: MakeShards, capsys) -> None:
    root = make(index).root
    whole = contents(root)
    (root / "index.npz").unlink()
    make_shards(index, root, settings(), workers=1, console=Console(True))
    assert "every shard is written again" in capsys.readouterr().out
    assert contents(root) == whole


def test_a_disk_that_is_full_leaves_nothing_half_written(index: Index, make: MakeShards, tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot be written .*what is finished is kept"):
            make(index)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "raw").rglob("*.tmp"))
    with pytest.raises(DataError, match="left unfinished"):
        open_shards(tmp_path / "raw")
    assert len(make(index).reasons) == 0


def test_refuses_other_settings_and_another_source(index: Index, make: MakeShards) -> None:
    root = make(index).root
    before = contents(root)
    for changed, message in (
        ({"short_side": 32}, "short_side 64, not 32"),
        ({"shard_size": 5}, "shard_size 10, not 5"),
        ({"format": "jpeg"}, "format 'raw', not 'jpeg'; quality None, not 90"),
    ):
        with pytest.raises(DataError, match=message):
            make(index, **changed, out="raw")
    with pytest.raises(DataError, match=r"sha256 .*choose another folder, or delete this one"):
        make(replace(index, labels=1 - index.labels))
    assert contents(root) == before


def test_refuses_folders_that_hold_something_else(index: Index, tmp_path: Path, make: MakeShards) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="full is not empty and holds no shards"):
        make(index, out="full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match=r"train/shards lies inside .*images, whose images"):
        make(index, out="images/train/shards")
    assert not (tmp_path / "images/train/shards").exists()


def test_refuses_a_folder_that_is_being_made(index: Index, make: MakeShards) -> None:
    root = make(index).root
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="is being made by another process"):
            make(index)


def test_a_folder_that_cannot_be_written_is_a_storage_error(index: Index, tmp_path: Path, make: MakeShards) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written .*; choose another folder"):
        make(index, out="file/shards")


def test_mixed_and_many_folders(jpeg_folder, make: MakeShards) -> None:
    index = load_index(jpeg_folder(images=3, splits=("train", "val", "test", "meta")), threads=1)
    shards: ShardIndex = make(index, shard_size=4)
    names = [shard.name for shard in shards.shards]
    assert names == ["train-00000.tar", "train-00001.tar", "meta-00000.tar", "meta-00001.tar"] + [
        f"{role}-0000{i}.tar" for role in ("select", "test") for i in (0, 1)
    ]
    assert read_manifest(shards.root).source.images == 24
    assert open_shards(str(shards.root)).folders.tolist() == index.folders.tolist()

import hashlib
import json
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastaug.data.image_headers import Status
from fastaug.data.index import Index, to_arrays
from fastaug.data.path_table import PathTable
from fastaug.data.shards.layout import Manifest, Settings, Shard, Source, is_shard_folder, open_shards, read_manifest
from fastaug.errors import DataError

from ..conftest import MakeShards, settings


def rewrite(root: Path, **changes: object) -> None:
    values = json.loads((root / "shards.json").read_text())
    (root / "shards.json").write_text(json.dumps(values | changes))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: os.truncate(root / "test-00000.tar", 1024), r"test-00000\.tar: 1024 bytes, not \d+: truncated"),
        (lambda root: (root / "train-00002.tar").unlink(), r"train-00002\.tar cannot be opened \(No such file"),
        (lambda root: (root / "index.npz").unlink(), r"index\.npz cannot be read"),
        (lambda root: flip_a_byte(root / "index.npz"), r"index\.npz: not the table that shards\.json names"),
        (lambda root: (root / "shards.json").write_text("{"), r"shards\.json: no manifest of shards"),
        (lambda root: (root / "shards.json").write_text("[]"), r"shards\.json: no manifest of shards"),
        (lambda root: rewrite(root, settings={}), r"shards\.json: no manifest of shards"),
        (lambda root: rewrite(root, version=2), r"version 2, this program reads 1; make the shards again"),
        (lambda root: rewrite(root, table=""), r"is being made or was left unfinished"),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_is_refused(index: Index, make: MakeShards, spoil, message) -> None:
    root = make(index).root
    spoil(root)
    with pytest.raises(DataError, match=message) as raised:
        open_shards(root)
    assert "make_shards.py" in str(raised.value) or "make the shards again" in str(raised.value)


def forge(root: Path, **columns: object) -> None:
    """Other values in the table, and a manifest that vouches for them."""
    with np.load(root / "index.npz") as z:
        table = {name: z[name].copy() for name in z.files}
    for name, value in columns.items():
        table[name] = value(table[name])
    np.savez(root / "index.npz", **table)
    rewrite(root, table=hashlib.sha256((root / "index.npz").read_bytes()).hexdigest())


def first(value: int) -> object:
    """The column with another first value."""

    def changed(column: np.ndarray) -> np.ndarray:
        column[0] = value
        return column

    return changed


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"offsets": first(-1)}, "an image lies outside its tar file"),
        ({"offsets": first(2**40)}, "an image lies outside its tar file"),
        ({"offsets": first(2**63 - 1)}, "an image lies outside its tar file"),
        ({"lengths": first(2**62)}, "an image lies outside its tar file"),
        ({"lengths": first(0)}, "an image lies outside its tar file"),
        ({"heights": first(0)}, "an image has no size"),
        ({"heights": first(-5)}, "an image has no size"),
        ({"widths": first(2**31 - 1)}, "an image has no size, or one that is too large"),
        ({"shard": first(9999)}, r"column shard has values outside \[0, "),
        ({"labels": first(-1)}, r"column labels has values outside \[0, 2\)"),
        ({"labels": first(2)}, r"column labels has values outside \[0, 2\)"),
        ({"status": first(7)}, r"column status has values outside \[0, 2\)"),
        ({"status": first(1)}, "not every damaged image has its reason"),
        ({"folders": first(9)}, "column folders has values outside"),
        ({"labels": lambda column: column[:-1]}, "column labels is not 48 integers"),
        ({"widths": lambda column: column.astype(float)}, "column widths is not 48 integers"),
        ({"paths_offsets": first(7)}, "the texts paths lie outside their block"),
        ({"paths_offsets": lambda column: column[:, None]}, "the texts paths lie outside their block"),
        ({"classes_offsets": first(-1)}, "the texts classes lie outside their block"),
        ({"classes_offsets": lambda column: column.astype(float)}, "the texts classes lie outside their block"),
        ({"paths_offsets": lambda column: column[:-1]}, "the texts paths lie outside their block"),
    ],
)
def test_a_table_that_cannot_be_is_refused(index: Index, make: MakeShards, kind, columns, message) -> None:
    root = make(index, kind).root
    forge(root, **columns)
    with pytest.raises(DataError, match=message):
        open_shards(root)


@pytest.mark.parametrize(
    "content",
    [b"", b"no array", b"\x93NUMPY\x01\0\x0a\0{'shape': (", b"\x93NUMPY\x01\0\x04\0{(}\n"],
    ids=["empty", "no array", "header cut", "header no literal"],
)
@pytest.mark.parametrize("name", ["labels", "paths", "offsets"])
def test_a_column_that_is_no_array_is_refused(index: Index, make: MakeShards, name: str, content: bytes) -> None:
    root = make(index).root
    with zipfile.ZipFile(root / "index.npz") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(root / "index.npz", "w") as archive:
        for member, held in members.items():
            archive.writestr(member, content if member == f"{name}.npy" else held)
    rewrite(root, table=hashlib.sha256((root / "index.npz").read_bytes()).hexdigest())
    with pytest.raises(DataError, match=r"index\.npz"):
        open_shards(root)


def test_a_raw_image_has_the_bytes_of_its_size(index: Index, make: MakeShards) -> None:
    root = make(index, "raw").root
    forge(root, heights=first(1), widths=first(1))
    with pytest.raises(DataError, match="more or fewer bytes than its size says"):
        open_shards(root)


def test_columns_of_other_types_become_those_of_an_index(index: Index, make: MakeShards) -> None:
    shards = make(index, "raw")
    forge(shards.root, labels=lambda c: c.astype(">i8"), offsets=lambda c: c.astype(np.uint64))
    again = open_shards(shards.root)
    assert (again.labels.dtype, again.offsets.dtype) == (np.dtype(np.int64), np.dtype(np.int64))
    assert again.labels.tolist() == shards.labels.tolist()


@pytest.mark.parametrize("size", [10**30, float("nan"), -1, True])
def test_a_size_that_no_file_has_is_refused(index: Index, make: MakeShards, size: float) -> None:
    root = make(index).root
    values = json.loads((root / "shards.json").read_text())
    values["shards"][0]["bytes"] = size
    rewrite(root, shards=values["shards"])
    with pytest.raises(DataError, match=r"no manifest of shards .*no whole number"):
        open_shards(root)


@pytest.mark.parametrize("name", ["../elsewhere.tar", "/etc/passwd", "a/b.tar", "a\0.tar", "\ud800.tar"])
def test_a_tar_file_elsewhere_is_refused(index: Index, make: MakeShards, name: str) -> None:
    root = make(index).root
    values = json.loads((root / "shards.json").read_text())
    values["shards"][0]["name"] = name
    rewrite(root, shards=values["shards"])
    with pytest.raises(DataError, match=r"no manifest of shards .*a file elsewhere"):
        open_shards(root)


def test_refused_folders_leave_no_file_open(index: Index, make: MakeShards) -> None:
    root = make(index).root
    (root / "test-00002.tar").unlink()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(DataError):
            open_shards(root)
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_are_closed_with_the_index(index: Index, make: MakeShards) -> None:
    before = len(os.listdir("/proc/self/fd"))
    shards = make(index)
    assert len(os.listdir("/proc/self/fd")) == before + len(shards.shards)
    other = replace(shards, labels=1 - shards.labels)
    del shards
    view = other.pixels(3, 0, 0, 2, 2)  # the files are shared
    pixels = view.copy()
    del other
    assert (view == pixels).all()
    del view
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_files_name_the_remedy(index: Index, make: MakeShards) -> None:
    import resource

    root = make(index, shard_size=1).root
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        with pytest.raises(DataError, match=r"Too many open files.*ulimit -n.*--shard-size"):
            open_shards(root)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_orientation_has_to_be_that_of_the_recipe(index: Index, make: MakeShards) -> None:
    root = make(index).root
    assert len(open_shards(root, "ignore")) == 48
    with pytest.raises(DataError, match=r"was made with --exif ignore; set data\.exif=ignore, or make it again"):
        open_shards(root, "apply")


def test_names_for_messages(index: Index, make: MakeShards) -> None:
    shards = make(index)
    for sample in (0, 47):
        tar, _, original = os.fsdecode(shards.path(sample)).partition(".tar:")
        assert Path(tar).parent == shards.root
        assert original.encode() == index.paths[sample]


def test_what_a_shard_folder_is(index: Index, make: MakeShards) -> None:
    assert is_shard_folder(make(index).root)
    assert not is_shard_folder(index.root)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "png"}, "format = 'png': must be one of jpeg, raw"),
        ({"format": "jpeg", "quality": 0}, "quality = 0 with format = jpeg"),
        ({"format": "jpeg", "quality": None}, "quality = None with format = jpeg"),
        ({"quality": 90}, "quality = 90 with format = raw"),
        ({"short_side": 0}, "short_side = 0"),
        ({"shard_size": 0}, "shard_size = 0"),
    ],
)
def test_settings_have_limits(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**wrong)


def test_half_a_million_images_open_within_a_second(tmp_path: Path) -> None:
    n = 500_000
    names = PathTable.of([b"train/n%08d/n%08d_%d.JPEG" % (i // 1300, i // 1300, i) for i in range(n)])
    whole, tall = np.arange(n), np.full(n, 256, np.int32)
    classes = tuple(f"n{i:08d}" for i in range(1000))
    none = np.zeros(n, np.uint8)
    index = Index(tmp_path, classes, names, whole % 1000, tall, tall, none.copy(), none, {7: "broken"})
    index.status[7] = Status.DAMAGED
    places = {"shard": (whole // 4096).astype(np.int32), "offsets": whole % 4096 * 512, "lengths": (whole != 7) * 100}
    np.savez(tmp_path / "index.npz", **to_arrays(index), **places)
    shards = tuple(Shard(f"train-{i:05d}.tar", 4096, 0, 0, 0, 4096 * 512, "") for i in range(123))
    for shard in shards:
        (tmp_path / shard.name).touch()
        os.truncate(tmp_path / shard.name, shard.bytes)
    table = hashlib.sha256((tmp_path / "index.npz").read_bytes()).hexdigest()
    manifest = Manifest(Settings("jpeg", 256, 90, None, "ignore"), Source("x", n, ""), shards, table)
    (tmp_path / "shards.json").write_bytes(manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    begin = time.process_time()
    opened = open_shards(tmp_path)
    assert time.process_time() - begin < 1
    assert opened.paths[n - 1] == names[n - 1]
    assert len(opened) == n

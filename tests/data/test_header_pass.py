"""A header pass that is killed goes on from what it had read; parts that are damaged or of other files are not used."""

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastaug.data import header_pass
from fastaug.data import index as index_module
from fastaug.data.header_pass import HeaderParts, Known, remove_parts
from fastaug.data.image_headers import HeaderTable
from fastaug.data.index import Index, cache_file, load_index
from fastaug.data.path_table import PathTable

IMAGES, KILLED, KEPT = 600, 500, 400  # images of the folder; read at the kill; in parts by then
NOTHING = np.zeros(0, np.int64), Known(HeaderTable.empty(0), np.zeros((0, 3), np.int64))  # rows, and of them
PASS = f"""
import os, signal, sys
from fastaug.data import header_pass, index
header_pass.SECONDS, header_pass._AT_ONCE = 0, 200
read = header_pass.screen_all
def until_killed(*given):
    for number, header in enumerate(read(*given)):
        if number == {KILLED}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield header
header_pass.screen_all = until_killed
index.load_index(sys.argv[-1], threads=2)
"""


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_processes: Callable[..., str]) -> Path:
    """A folder whose header pass was killed; every 25th image is damaged."""
    monkeypatch.setenv("FASTAUG_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    Image.new("RGB", (9, 7)).save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    for number in range(IMAGES):
        source = tmp_path / ("whole.png" if number % 25 else "broken.png")
        os.link(source, root / ("cat" if number % 2 else "dog") / f"{number:04}.png")
    in_processes(1, "-c", PASS, root, code=-9)
    return root


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths that this process reads."""
    paths: list[bytes] = []
    screen_all = header_pass.screen_all

    def recording(top: bytes, given: Any, *more: Any) -> Iterator[Any]:
        paths.extend(given)
        return screen_all(top, given, *more)

    monkeypatch.setattr(header_pass, "screen_all", recording)
    return paths


def parts(root: Path) -> list[Path]:
    return sorted(cache_file(root, "ignore").with_suffix(".parts").glob("*"))


def columns(index: Index) -> dict[str, Any]:
    arrays = {name: getattr(index, name).tolist() for name in ("heights", "widths", "status", "stamps")}
    return arrays | {"paths": list(index.paths), "reasons": list(index.reasons.items())}


def test_a_killed_pass_goes_on(killed: Path, read: list[bytes]) -> None:
    assert len(parts(killed)) == 2
    index = load_index(killed, threads=1)
    assert len(read) == IMAGES - KEPT
    assert not parts(killed)
    cache_file(killed, "ignore").unlink()
    assert columns(index) == columns(load_index(killed, threads=1))
    assert len(index.reasons) == IMAGES // 25


def test_a_file_changed_since_it_was_read_is_read_again(killed: Path, read: list[bytes]) -> None:
    Image.new("RGB", (4, 6)).save(file := killed.parent / "other.png")
    os.replace(file, killed / "cat" / "0001.png")
    index = load_index(killed, threads=1)
    assert read[0] == b"cat/0001.png"
    assert len(read) == IMAGES - KEPT + 1
    assert (index.heights[0], index.widths[0]) == (6, 4)


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "text"])
def test_a_damaged_part_is_named_and_its_images_are_read_again(killed: Path, read: list[bytes], damage: str) -> None:
    file = parts(killed)[0]
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    header = whole.replace(b"(200, 3)", b"(000, 3)")  # one bit; 4,096 bytes are read, and compared, in any case
    assert header != whole
    file.write_bytes({"cut": whole[:middle], "flipped": flipped, "header": header, "text": b"text"}[damage])
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged .*; what it held of the index is read again"):
        index = load_index(killed, threads=1)
    assert len(read) == IMAGES - KEPT // 2
    assert index.reasons.keys() == {row for row, path in enumerate(index.paths) if int(path[-8:-4]) % 25 == 0}


def test_parts_of_other_files_are_removed(killed: Path, read: list[bytes]) -> None:
    (killed / "cat" / "0001.png").unlink()
    index = load_index(killed, threads=1)
    assert len(index) == len(read) == IMAGES - 1
    assert not parts(killed)


def test_parts_of_another_version_are_removed(killed: Path, read: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "VERSION", index_module.VERSION + 1)
    load_index(killed, threads=1)
    assert len(read) == IMAGES
    assert not parts(killed)


def test_parts_left_beside_a_whole_index_are_removed(killed: Path) -> None:
    (left := parts(killed)[0]).rename(kept := killed.parent / left.name)
    load_index(killed, threads=1)
    left.parent.mkdir()
    kept.rename(left)  # as after a kill between the two
    load_index(killed, threads=1)
    assert not left.parent.exists()


def test_a_damaged_part_that_cannot_be_removed_ends_no_start(killed: Path, read: list[bytes]) -> None:
    (parts(killed)[0].parent / "folder.npz").mkdir()
    with pytest.warns(UserWarning, match=r"folder.npz is damaged"):
        load_index(killed, threads=1)
    assert len(read) == IMAGES - KEPT


def test_parts_that_another_run_removes_are_no_damage(tmp_path: Path) -> None:
    kept = HeaderParts(tmp_path / "parts", PathTable.of([b"a"]), 0)
    for _ in range(2):
        kept.write(*NOTHING)
    loaded = kept.load()
    next(loaded)
    remove_parts(tmp_path / "parts")
    assert list(loaded) == []


def test_parts_that_cannot_be_kept_are_one_warning(tmp_path: Path) -> None:
    folder = Path("/".join([str(tmp_path), *["x" * 100] * 50])[:4080])  # of a file in it the path is too long
    kept = HeaderParts(folder, PathTable.of([b"a"]), 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            kept.write(*NOTHING)
    assert [str(each.message).count("cannot be kept (File name too long)") for each in said] == [1]


def test_parts_stay_where_the_index_cannot_be_cached(killed: Path, read: list[bytes]) -> None:
    cache_file(killed, "ignore").mkdir()  # nothing can be put in its place
    for _ in range(2):
        read.clear()
        with (
            pytest.warns(UserWarning, match="is not cached"),
            pytest.warns(UserWarning, match="cannot be read and is made"),
        ):
            load_index(killed, threads=1)
        assert len(read) == IMAGES - KEPT
    assert len(parts(killed)) == 2

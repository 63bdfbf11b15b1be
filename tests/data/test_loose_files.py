"""Image files as a person names them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastaug.data.image_headers import Status
from fastaug.data.loose_files import find_images, index_of, told
from fastaug.errors import DataError


def test_files_and_folders_come_in_the_order_in_which_they_were_named(
    jpegs: Callable[..., Path], tmp_path: Path
) -> None:
    root = jpegs(tmp_path / "b", 2, 2)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.jpg").write_text("no image")
    (tmp_path / "a.dat").write_bytes((root / "class0" / "000.jpg").read_bytes())  # named: whatever its ending
    found = find_images([tmp_path / "b", tmp_path / "a.dat"])
    names = [os.path.relpath(os.fsdecode(path), tmp_path) for path in found.paths]
    assert names == ["b/class0/000.jpg", "b/class0/001.jpg", "b/class1/000.jpg", "b/class1/001.jpg", "a.dat"]
    assert told(found.others) == "1 .txt"
    index = index_of(found.paths, ("x", "y"), "ignore", 1)
    assert [index.path(i) for i in range(5)] == found.paths
    assert (index.heights > 0).all()


def test_what_is_no_image_is_in_the_index_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    index = index_of(find_images([tmp_path]).paths, ("x", "y"), "ignore", 1)
    assert (index.status[0], list(index.reasons)) == (Status.DAMAGED, [0])


def test_links_are_followed_and_circles_end(jpegs: Callable[..., Path], tmp_path: Path) -> None:
    jpegs(tmp_path / "elsewhere", 1, 2)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "named")
    assert len(find_images([tmp_path / "named"]).paths) == 2


def test_a_folder_without_images_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").write_text("")
    with pytest.raises(DataError, match=r"no image below this folder; 1 \.heic in it; name one that holds images"):
        find_images([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file or folder"):
        find_images([tmp_path / "gone.png"])

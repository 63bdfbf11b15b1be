"""What stands in place of a file: nothing of it hangs a reader or is followed out of its folder."""

import os
import shutil
from pathlib import Path

import pytest

from fastaug.atomic_files import open_regular, remove, remove_leftovers


def test_only_a_regular_file_is_opened_and_nothing_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("read")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"read"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device", "absent"):
        with pytest.raises(OSError, match=name):
            open_regular(tmp_path / name)


def test_what_is_removed_is_what_has_the_name(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to("kept")
    os.mkfifo(tmp_path / "pipe")
    shutil.copytree(tmp_path / "kept", tmp_path / "folder")
    for name in ("link", "pipe", "folder", "absent"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_leftovers_are_the_temporary_files_of_atomic_writes(tmp_path: Path) -> None:
    names = (".status.json.31.tmp", ".a.b.1.tmp", ".a.tmp", "a.1.tmp", ".a.1.tmp.txt")
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])

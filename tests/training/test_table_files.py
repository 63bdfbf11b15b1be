"""Files of learned tables: what a checkpoint writes anew, and that nothing of it is lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from fastaug.errors import StorageError
from fastaug.training import checkpoint, table_files
from fastaug.training.table_files import Table

SIZE = 100


@pytest.fixture(autouse=True)
def _no_table_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "WHOLE", 0)


def made() -> Table:
    rows = {"parts.x.weight": torch.zeros(SIZE, 3), "parts.x.names": torch.zeros(SIZE, 2, dtype=torch.int16)}
    return Table(rows, torch.zeros(SIZE, dtype=torch.bool))


def change(table: Table, ids: list[int], value: int) -> None:
    for rows in table.rows.values():
        rows[ids] = value
    table.changed[ids] = True


def save(folder: Path, step: int, table: Table) -> Path:
    state = {"meta": {"learned": {"parts.y": torch.ones(1)}}}
    return checkpoint.save(folder, step, {"model": {}}, state, {"x": table})


def assert_holds(path: Path, table: Table) -> None:
    state = checkpoint.load(path).state
    learned = state["meta"]["learned"]
    assert learned.keys() == {"parts.y", *table.rows}
    assert all(torch.equal(learned[name], rows) for name, rows in table.rows.items())
    assert torch.equal(state["changed_rows"]["x"], table.changed.nonzero()[:, 0])


def test_a_checkpoint_has_the_file_of_the_one_before_and_the_rows_changed_since(tmp_path: Path) -> None:
    table, sizes, files = made(), [], []
    for step, changed in enumerate([[], [], [3, 9], list(range(10, 30)), list(range(20, 80)), [1]], start=1):
        change(table, changed, step)
        path = save(tmp_path, step, table)
        assert_holds(path, table)
        sizes.append(sorted(file.name for file in path.iterdir() if file.name.startswith(("table", "rows"))))
        files.append((path / "table-x.safetensors").stat().st_ino)
    both = ["rows-x.safetensors", "table-x.safetensors"]
    assert sizes == [both[1:], both[1:], both, both, both[1:], both]
    assert [files.index(file) for file in files] == [0, 0, 0, 0, 4, 4]  # 72 of 100 rows: written anew
    checkpoint.prune(tmp_path, keep=1, best=None)
    assert_holds(path, table)


def test_a_run_goes_on_from_what_it_loads(tmp_path: Path) -> None:
    table, again = made(), made()
    save(tmp_path, 1, table)
    change(table, [4, 5], 7)
    loaded = checkpoint.load(save(tmp_path, 2, table)).state
    for name, rows in again.rows.items():
        rows.copy_(loaded["meta"]["learned"][name])
    again.changed[loaded["changed_rows"]["x"]] = True
    change(again, [5, 6], 8)
    path = save(tmp_path, 3, again)
    assert_holds(path, again)
    assert again.changed.nonzero()[:, 0].tolist() == [4, 5, 6]


def test_without_hard_links_or_a_checkpoint_before_the_table_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("no links here")

    table = made()
    monkeypatch.setattr(os, "link", refused)
    for step in (1, 2):
        change(table, [step], step)
        path = save(tmp_path, step, table)
        assert_holds(path, table)
        assert not (path / "rows-x.safetensors").exists()


def test_a_copy_of_the_folder_needs_no_links_to_the_old_one(tmp_path: Path) -> None:
    table = made()
    save(tmp_path / "run", 1, table)
    change(table, [3], 1)
    save(tmp_path / "run", 2, table)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # each file by itself, as on another disk
    shutil.rmtree(tmp_path / "run")
    change(table, [4], 2)
    assert_holds(save(tmp_path / "copy", 3, table), table)


def test_small_tables_are_whole_so_that_damage_to_one_checkpoint_is_no_damage_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "WHOLE", 1 << 26)
    table = made()
    older, newer = save(tmp_path, 1, table), save(tmp_path, 2, table)
    (newer / "table-x.safetensors").write_bytes(b"junk")
    assert checkpoint.latest(tmp_path)[0] == older


def test_a_file_that_was_damaged_since_is_not_shared(tmp_path: Path) -> None:
    table = made()
    path = save(tmp_path, 1, table) / "table-x.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    change(table, [2], 5)
    assert_holds(save(tmp_path, 2, table), table)


@pytest.mark.parametrize("broken", ["_write_manifest", "_point_at"])
def test_a_save_that_fails_loses_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The next one has the table's file of the checkpoint that `last` still names, and all that changed since."""
    table = made()
    save(tmp_path, 1, table)
    change(table, list(range(60)), 5)  # written anew
    with monkeypatch.context() as full:
        full.setattr(checkpoint, broken, no_space)
        with pytest.raises(StorageError, match="No space left"):
            save(tmp_path, 2, table)
    change(table, [70], 6)
    assert_holds(save(tmp_path, 3, table), table)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_older_version_is_told_that_it_cannot_read_tables(tmp_path: Path) -> None:
    formats = []
    for step, tables in enumerate(({}, {"x": made()})):
        path = checkpoint.save(tmp_path, step, {"model": {}}, {"meta": {"learned": {}}}, tables)
        formats.append(json.loads((path / "manifest.json").read_text())["format"])
        assert checkpoint.verify(path) is None
    assert formats == [1, 2]


@pytest.mark.parametrize("file", ["table-x.safetensors", "rows-x.safetensors"])
def test_damage_is_found(tmp_path: Path, file: str) -> None:
    table = made()
    save(tmp_path, 1, table)
    change(table, [2], 5)
    path = save(tmp_path, 2, table)
    os.truncate(path / file, (path / file).stat().st_size - 1)
    assert checkpoint.verify(path) == f"{file} has another size than was saved"

"""Changed files of strangers end in an error of our own; and the fuzzer sees it where one does not."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attacks.fuzz import TARGETS, Guard, attack, edited, problem
from attacks.target import Target
from fastaug.errors import DataError

TRIES = 20  # of each kind, in the tests that always run
FEWER = {"recipe": 6, "shards": 8, "tfrecord": 8, "hfds": 8}  # of the kinds that cost most


ALL = """
import os
from attacks.fuzz import TARGETS, main
for name in TARGETS:
    os.mkdir(name)
    assert main([os.path.abspath(name), name, str({fewer}.get(name, {tries})), "1"]) == 0, name
"""


def test_changed_files_are_read_or_refused(in_processes: Callable[..., str], tmp_path: Path) -> None:
    in_processes(1, "-c", f"import os; os.chdir({str(tmp_path)!r})" + ALL.format(tries=TRIES, fewer=FEWER))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_changes(name: str) -> None:
    assert attack(name, 1000, seed=2) == ""


def tried(read: Callable[[Path], object], folder: Path, exact: str = "") -> str:
    (folder / "sound").mkdir()
    (folder / "sound" / "a.txt").write_text("12")
    target = Target(lambda _: None, {"reader": read}, (DataError,), exact=exact)
    return problem(target, folder / "sound", [("set", 0, 0, b"x")], folder / "tried", Guard())


def refuse(folder: Path) -> None:
    raise DataError(f"{folder}: refused")


def change(folder: Path) -> None:
    (folder / "b" / "c").mkdir(parents=True)
    (folder / "a.txt").rename(folder / "b" / "a.txt")
    shutil.rmtree(folder / "b")


def catch(folder: Path) -> None:
    try:
        os.posix_spawn("/bin/true", ["true"], os.environ)
    except Exception as error:
        raise DataError(f"{folder}: refused, whatever it was") from error


def test_what_passes_and_what_does_not(tmp_path: Path) -> None:
    readers: dict[str, tuple[Callable[[Path], object], str]] = {
        "a refusal": (refuse, ""),
        "a value": (Path.exists, ""),
        "another error": (lambda folder: int((folder / "a.txt").read_text()), "ValueError: invalid literal"),
        "memory": (lambda _: bytearray(2**31), "MemoryError"),
        "a process": (lambda _: os.posix_spawn("/bin/true", ["true"], os.environ), "AssertionError: os.posix_spawn"),
        "a pickle's call": (lambda _: pickle.loads(b"cos\ngetcwd\n)R."), "pickle.find_class"),
        "a file elsewhere": (lambda _: (tmp_path / "elsewhere").write_text(""), "open changes"),
        "a folder beside": (lambda folder: folder.with_name("tried-too").mkdir(), "os.mkdir changes"),
        "a file moved out": (lambda folder: (folder / "a.txt").rename(tmp_path / "elsewhere"), "os.rename changes"),
        "a file removed": (lambda folder: (folder.parent / "sound" / "a.txt").unlink(), "os.remove changes"),
        "a tree removed": (lambda folder: shutil.rmtree(folder.parent / "sound"), "changes"),
        "changes inside": (change, ""),
        "a caught alarm": (catch, "goes on: os.posix_spawn"),
    }
    for name, (read, expected) in readers.items():
        (tmp_path / name).mkdir()
        found = tried(read, tmp_path / name)
        assert expected in found if expected else found == "", name
    assert not (tmp_path / "elsewhere").exists()


def test_a_change_that_has_to_be_noticed(tmp_path: Path) -> None:
    assert tried(Path.exists, tmp_path, exact="*.txt") == "a change of a.txt is not noticed"


def test_edits() -> None:
    assert edited(b"abcd", "set", 1, b"xy") == b"axyd"
    assert edited(b"abcd", "put", 6, b"x") == b"axbcd"  # places are counted modulo the length
    assert edited(b"abcd", "drop", 1, 2) == b"ad"
    assert edited(b"abcd", "again", 1, 2) == b"abcbcd"
    assert edited(b"abcd", "cut", 2, None) == b"ab"
    assert edited(b'{"a": [1, 2]}', "value", 3, None) == b'{"a": [1, null]}'
    assert edited(b"no JSON", "value", 3, None) == b"no JSON"

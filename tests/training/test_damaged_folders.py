"""Run folders that were damaged between two starts: each start continues, or ends with a code and a reason."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks.run_folders import (
    CONTINUES,
    ENDS,
    NEWEST,
    RECIPE,
    Damage,
    differences,
    in_place,
    lines,
    of,
    text,
    train,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four updates with the checkpoints of the last three, beside its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    assert train(folder / "recipe.yaml", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """again(damage, "key=value", ...) -> exit code of a start in a damaged copy of the run, tmp_path / "run"."""

    def start(damage: Damage, *overrides: str) -> int:
        shutil.copytree(whole, tmp_path / "run")
        damage(tmp_path / "run")
        return train(whole.parent / "recipe.yaml", tmp_path / "run", *overrides)

    yield start
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def cases(table: dict[str, Any]) -> list[Any]:
    """The table's cases; of those that repeat a kind for another file, the fast tests take one in three."""
    repeats = [name for name in table if re.match(r"(model|manifest)\S+: |.* a (folder|dead link)$", name)]
    slow = set(repeats) - set(repeats[::3])
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), id=name, marks=[pytest.mark.slow] * (name in slow)
        )
        for name, value in table.items()
    ]


@pytest.mark.slow  # CI takes a sample of these after the tests: tools/torture.py
@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", cases(CONTINUES))
def test_a_run_continues_to_what_it_would_have_been(
    again: Callable[..., int],
    whole: Path,
    tmp_path: Path,
    damage: Damage,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert again(damage) == 0
    assert "Traceback" not in "".join(capfd.readouterr())
    assert differences(tmp_path / "run", whole) == []
    assert not (tmp_path / "executed").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("damage", "code", "words"), cases(ENDS))
def test_a_run_that_cannot_continue_ends_with_its_reason(
    again: Callable[..., int], damage: Damage, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert again(damage) == code
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert words in said


ATTACKS = """
import sys
from pathlib import Path

from attacks.run_folders import attack, make_whole

made, sound, junk = map(Path, sys.argv[2:])
whole = make_whole(made)
assert attack("status junk", whole, sound, patience=60) == ""
whole.joinpath("metrics.jsonl").write_text("")  # as if the damaged run had written too much
print(attack("status junk", whole, junk, patience=60))
"""


def test_an_attack_says_what_went_wrong(tmp_path: Path, in_processes: Callable[..., str]) -> None:
    # Attacks fork, and torch refuses a backward pass in a child of a process that has had one with threads.
    folders = [tmp_path / name for name in ("made", "sound", "junk")]
    for folder in folders:
        folder.mkdir()
    assert "not as the run that nothing happened to: metrics.jsonl" in in_processes(1, "-c", ATTACKS, *folders)


def test_broken_lines_of_a_log_are_dropped_and_the_rest_stays(
    again: Callable[..., int], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def damage(folder: Path) -> None:
        good = (folder / "metrics.jsonl").read_bytes().splitlines()
        junk = [b"\0\0", b"[1]", b'"text"', b'{"step": "2"}', b'{"epoch": 1}', b"\xff\xfe", b"[" * 100_000]
        mixed = [line for pair in zip(good, junk, strict=False) for line in pair]
        (folder / "metrics.jsonl").write_bytes(b"\n".join([*mixed, *good[len(junk) :]]) + b"\n")

    assert again(damage) == 0
    assert "metrics.jsonl: lines that cannot be read were dropped" in capfd.readouterr().out
    assert [line for line in lines(tmp_path / "run") if line["event"] == "train"] == [
        line for line in lines(whole) if line["event"] == "train"
    ]


def test_a_link_in_place_of_the_lock_does_not_empty_what_it_leads_to(again: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    assert again(of(".lock", in_place(lambda file: file.symlink_to(tmp_path / "precious")))) == 5
    assert (tmp_path / "precious").read_text() == "kept"


def test_what_no_manifest_vouches_for_is_not_loaded(again: Callable[..., int], whole: Path, tmp_path: Path) -> None:
    assert again(of(f"{NEWEST}/ema.safetensors", text("junk"))) == 0
    (tmp_path / "run" / NEWEST / "ema.safetensors").unlink()
    assert differences(tmp_path / "run", whole) == []

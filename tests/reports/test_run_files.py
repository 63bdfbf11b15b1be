"""What run folders say, whole, unfinished and damaged."""

import json
import os
from pathlib import Path

import pytest

from fastaug.errors import StorageError
from fastaug.reports.run_files import names_of, read_run, read_runs


def test_a_whole_run(made_run):
    run = read_run(made_run("one", "run.seed=3"), "one")
    assert run.seed == 3
    assert run.state() == "ended"
    assert len(run.of("train")) == 4
    assert run.class_name(1) == "class1"
    assert run.class_name(7) == "class 7"
    assert set(run.problems) == {"profile.json", "skipped.jsonl"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("result.json", kind) for kind in ("gone", "empty", "cut", "folder", "pipe", "deep", "other")),
        *((name, "cut") for name in ("status.json", "metrics.jsonl", "classes.json", "samples.npz")),
        *(("metrics.jsonl", kind) for kind in ("pipe", "deep", "other")),
        *(("samples.npz", kind) for kind in ("empty", "pipe", "other")),
    ],
)
def test_a_file_that_is_damaged_costs_itself(made_run, name, kind):
    folder = made_run("one")
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    elif kind != "gone":
        data = {"empty": b"", "cut": whole[: len(whole) // 2], "deep": b"[" * 100_000, "other": b"[1, 2]\n3\n"}
        (folder / name).write_bytes(data[kind])
    run = read_run(folder, "one")
    told = {problem for problem in run.problems if problem not in ("profile.json", "skipped.jsonl")}
    quiet = name == "metrics.jsonl" and kind in ("empty", "cut", "deep")  # a last line that a kill cut off
    assert told == (set() if quiet else {name})
    assert run.recipe is not None


def test_broken_lines_of_a_log_are_counted_and_a_last_half_is_not(made_run):
    folder = made_run("one")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], '{"event": ', "7", lines[1], lines[2][:20]]))
    run = read_run(folder, "one")
    assert len(run.lines) == 2
    assert run.problems["metrics.jsonl"] == "2 of 5 lines are damaged and left out"


def test_a_recipe_of_another_version_is_told(made_run):
    folder = made_run("one")
    (folder / "recipe.yaml").write_text("schema: 9999\n")
    run = read_run(folder, "one")
    assert run.recipe is None
    assert "update fastaug" in run.problems["recipe.yaml"]
    assert run.test


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"code": None, "reason": "training"}, "not ended"),
        ({"code": 4, "reason": "loss is NaN"}, "loss is NaN (code 4)"),
        ({"code": 0}, "ended"),
        ([], "not ended"),
    ],
)
def test_the_state(made_run, status, state):
    folder = made_run("one")
    (folder / "status.json").write_text(json.dumps(status))
    assert read_run(folder, "one").state() == state


def test_names_are_as_long_as_they_must_be():
    assert names_of([Path("/a/x/run"), Path("/a/y/run"), Path("/b/other")]) == ["x/run", "y/run", "other"]


def test_no_run_and_a_run_twice_are_refused(made_run, tmp_path):
    folder = made_run("one")
    with pytest.raises(StorageError, match=r"no recipe\.yaml; name the run\.dir"):
        read_runs([folder, tmp_path])
    with pytest.raises(StorageError, match="named twice"):
        read_runs([folder, folder / ".." / "one"])

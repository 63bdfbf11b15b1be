"""The tool as a person starts it, on a run of the smallest network."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastaug.__main__ import main

Tool = Callable[..., str]


@pytest.fixture
def replay(tool: Tool) -> Tool:
    return partial(tool, "replay")


def test_an_image_in_an_epoch(tiny_run: Path, tmp_path: Path, replay: Tool) -> None:
    out, numbers = tmp_path / "a.png", tmp_path / "a.json"
    said = replay(tiny_run, "--id", 3, "--epoch", 1, "--out", out, "--json", numbers)
    found = json.loads(numbers.read_text())
    (shown,) = found["shown"]
    assert (found["id"], found["epoch"], found["notes"]) == (3, 1, [])
    assert f"image: id 3, {shown['file']}, {shown['class']}" in said
    assert f"trained on: update {shown['step']}, process 0, micro-batch 0, row {shown['row']}" in said
    assert "inputs and targets: exact" in said
    assert shown["losses_are"] == f"by the weights of update {shown['checkpoint']}"
    assert shown["loss"] > 0
    with Image.open(out) as picture:
        assert picture.width > 4 * 192
        assert picture.height > 192


def test_the_batch_of_an_update(tiny_run: Path, tmp_path: Path, replay: Tool) -> None:
    out, numbers = tmp_path / "b.png", tmp_path / "b.json"
    said = replay(tiny_run, "--step", 1, "--out", out, "--json", numbers)
    found = json.loads(numbers.read_text())
    assert len(found["samples"]) == 12
    assert f"update 1: 12 images  loss {found['loss']:.6g}" in said
    assert found["losses_are"] == "exact"  # of the network as it was made
    assert np.mean([one["loss"] for one in found["samples"]]) == pytest.approx(found["loss"], rel=1e-5)
    assert {f"id {one['id']}  {one['class']}" for one in found["samples"]} == {
        "  ".join(line.split("  ")[:2]) for line in said.splitlines() if line.startswith("id ")
    }
    with Image.open(out) as picture:
        assert np.asarray(picture).std() > 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give --id and --epoch, or --step alone"),
        (["--id", "1"], 2, "--id and --epoch go together"),
        (["--step", "1", "--id", "1"], 2, "or --step alone"),
        (["--step", "1", "--processes", "0"], 2, "--processes must be at least 1"),
        (["--step", "1", "--out", "nowhere/at.png"], 2, "--out: there is no folder nowhere"),
    ],
)
def test_refuses(tiny_run: Path, replay: Tool, words: list[str], code: int, message: str) -> None:
    assert message in replay(tiny_run, *words, code=code)


def test_what_the_run_has_not(tiny_run: Path, tmp_path: Path, replay: Tool) -> None:
    assert "is no run folder" in replay(tmp_path, "--step", 1, code=5)
    assert "--epoch: 7 is none of the run's, 0 to 1" in replay(tiny_run, "--id", 3, "--epoch", 7, code=2)


@pytest.mark.slow
def test_every_command_of_the_page(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    commands = re.findall(r"^    fastaug (.+)$", page, re.M)
    assert {command.split()[0] for command in commands} == {"train", "replay", "same-run", "bisect-runs"}
    (tmp_path / "runs").mkdir()
    for name in ("quickstart", "before", "after"):
        (tmp_path / "runs" / name).symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.replace("--id 17", "--id 3").split()  # 17 is not in this run's training split
        assert main(words if words[0] != "train" else [*words, "--check"]) == 0, capsys.readouterr()
    assert {path.name for path in tmp_path.glob("*.*")} == {"replay-id-3-epoch-1.png", "batch.png", "batch.json"}

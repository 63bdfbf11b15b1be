"""The example loop as a user starts it, in this process."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "minimal_loop.py"


@pytest.mark.parametrize("splits", [("",), ("train", "val")], ids=["one folder", "its own test"])
def test_the_minimal_loop_learns_two_kinds_of_pictures(jpeg_folder, monkeypatch, capsys, splits):
    assert len(SCRIPT.read_text().splitlines()) <= 80
    root = jpeg_folder(images=30, sizes=(40, 60), splits=splits)
    options = ["--model", "test_resnet", "--side", "32", "--epochs", "8", "--batch-size", "12", "--lr", "0.02"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(root), *options])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"epoch \d  loss (\S+)", said)]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert float(said.split("accuracy ")[1]) > 0.7  # a flower against a temple; chance is .5

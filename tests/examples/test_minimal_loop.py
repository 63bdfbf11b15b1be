"""The example loop, as a user starts it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "minimal_loop.py"


@pytest.mark.parametrize("splits", [("",), ("train", "val")], ids=["one folder", "its own test"])
def test_the_minimal_loop_learns_two_kinds_of_pictures(jpeg_folder, splits):
    assert len(SCRIPT.read_text().splitlines()) <= 80
    root = jpeg_folder(images=30, sizes=(40, 60), splits=splits)
    options = ["--model", "test_resnet", "--side", "32", "--epochs", "8", "--batch-size", "12", "--lr", "0.02"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), *options], capture_output=True, text=True, check=True, timeout=200
    )
    losses = [float(loss) for loss in re.findall(r"epoch \d  loss (\S+)", done.stdout)]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert float(done.stdout.split("accuracy ")[1]) > 0.7  # a flower against a temple; chance is .5

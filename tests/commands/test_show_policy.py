"""The tool as a person starts it, on a real run: pictures of every kind, of learned and of frozen parts."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 16, threads: 1, test_fraction: 0.3, meta_fraction: 0.3}
model: {name: test_resnet}
train: {epochs: 1, batch_size: 4}
meta: {learn: [policy], probabilities: score, every: 1, batch_size: 2, operations: inv_scale, engine: forward}
run: {log_every: 1}
eval: {every: 0}
"""


@pytest.fixture
def show(tool):
    return partial(tool, "show_policy")


@pytest.fixture
def learned(tmp_path, jpeg_folder):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    settings = [f"data.root={jpeg_folder(images=10)}", f"run.dir={tmp_path / 'run'}"]
    assert run(read_recipe(tmp_path / "recipe.yaml", settings)) == 0
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return tmp_path / "run"


def test_a_run_is_shown_and_left_as_it_was(learned, tmp_path, show):
    before = {path: path.read_bytes() for path in learned.rglob("*") if path.is_file()}
    said = show(learned, "--images", "3", "--draws", "2")
    names = {"policy.html", *(f"policy-{name}.png" for name in ("probability", "magnitude", "parameters", "images"))}
    assert {Path(line).name for line in said.splitlines() if line.startswith(str(learned))} == names
    after = {path for path in learned.rglob("*") if path.is_file()}
    assert {path.name for path in after - before.keys()} == names
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (learned / "policy.html").read_text().count("data:image/png") == 4
    grid = np.asarray(Image.open(learned / "policy-images.png"))
    assert grid.std() > 20
    (tmp_path / "out").mkdir()
    (learned / "metrics.jsonl").write_text('{"event": "learned", "step"')  # what a kill left
    show(learned, "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == names - {
        "policy-probability.png",
        "policy-magnitude.png",
    }
    assert "Nothing was learned in this run" in (tmp_path / "out/policy.html").read_text()


def test_what_cannot_be_shown_is_refused(tmp_path, show):
    assert "metrics.jsonl: cannot be read" in show(tmp_path, code=5)
    (tmp_path / "metrics.jsonl").write_text("")
    assert "has no policy.json; name the folder of a run" in show(tmp_path, code=2)
    (tmp_path / "policy.json").write_text(json.dumps({"fastaug_policy": 2}))
    assert "fastaug_policy: 2 is not the version" in show(tmp_path, code=2)
    assert "--images and --draws must be at least 1" in show(tmp_path, "--images", "0", code=2)

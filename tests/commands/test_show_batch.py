"""The tool as a person starts it, on real files through DALI."""

from functools import partial

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 32, threads: 1, test_fraction: 0.3}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 8}
augment: {shift: 0.2, cutmix: 1}
run: {trackers: [tensorboard]}
"""


@pytest.fixture
def show(tool):
    return partial(tool, "show_batch")


@pytest.fixture
def recipe(tmp_path, jpeg_folder):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return [str(tmp_path / "recipe.yaml"), f"data.root={jpeg_folder()}", f"run.dir={tmp_path / 'run'}"]


def test_shows_what_a_run_logs(recipe, tmp_path, show):
    assert run(read_recipe(recipe[0], recipe[1:])) == 0
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    show(*recipe, "--out", str(tmp_path / "batch.png"))
    shown, logged = (np.asarray(Image.open(folder / "batch.png")) for folder in (tmp_path, tmp_path / "run"))
    assert (shown == logged).all()


def test_curve_and_nothing_else_is_written(recipe, tmp_path, show):
    before = {path.name for path in tmp_path.iterdir()}
    show(*recipe, "--curve", "--out", str(tmp_path / "curve.png"))
    height, width, _ = np.asarray(Image.open(tmp_path / "curve.png")).shape
    assert width > 4 * height
    assert {path.name for path in tmp_path.iterdir()} - before == {"curve.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.img_sice=3"], "data.img_sice"),
        (["--images", "0"], "--images must be at least 1"),
        (["--out", "nowhere/at/all.png"], "there is no folder nowhere/at"),
    ],
)
def test_refuses(recipe, tmp_path, show, words, message):
    assert message in show(*recipe, "--out", str(tmp_path / "x.png"), *words, code=2)

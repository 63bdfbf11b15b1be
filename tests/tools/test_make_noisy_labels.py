"""The tool as a person starts it; what it wrote is read by the code that reads a run's data."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.distributed import build_accelerator
from fastaug.recipe.reading import read_recipe
from fastaug.training.build_data import find_data

REPO = Path(__file__).resolve().parents[2]
CLASSES = ("cat", "dog", "emu")


@pytest.fixture
def recipe(tmp_path):
    """A recipe and its data: folders that name the splits, 30 images to train, 6 for the meta step, 6 to test."""
    for split, count in (("train", 10), ("meta", 2), ("test", 2)):
        for name in CLASSES:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / "images" / split / name / f"{i}.png")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{root: {tmp_path}/images, img_size: 8}}\nmodel: {{name: test_resnet}}\nrun: {{dir: {tmp_path}/run}}"
    )
    return tmp_path / "recipe.yaml"


def make(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "tools/make_noisy_labels.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def data(recipe: Path, *overrides: str):
    settings = read_recipe(recipe, list(overrides))
    found = find_data(settings, build_accelerator(settings))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return found


@pytest.mark.parametrize(("kind", "share", "steps"), [("uniform", 0.4, {1, 2}), ("pairwise", 0.3, {1})])
def test_a_share_of_the_training_labels_is_wrong(recipe, tmp_path, kind, share, steps):
    done = make(str(recipe), "--kind", kind, "--share", str(share), "--out", str(tmp_path / "new/noise.tsv"))
    assert done.returncode == 0, done.stderr
    parts = data(recipe, f"data.labels={tmp_path / 'new/noise.tsv'}")
    right, given = parts.folder_labels, parts.index.labels
    wrong = np.flatnonzero(right != given)
    assert len(wrong) == round(30 * share)
    assert set(wrong) <= set(parts.splits.train)
    assert set((given - right)[wrong] % len(CLASSES)) <= steps


def test_the_control_trains_on_train_and_meta_and_has_no_meta_split(recipe, tmp_path):
    before = data(recipe).splits
    assert len(before.meta) == 6
    done = make(str(recipe), "--out", str(tmp_path / "noise.tsv"), "--with-meta", str(tmp_path / "new/lists"))
    assert done.returncode == 0, done.stderr
    control = data(recipe, f"data.splits={tmp_path / 'new/lists'}").splits
    assert sorted(control.train) == sorted([*before.train, *before.meta])
    assert len(control.meta) == 0
    assert sorted(control.test) == sorted(before.test)


def test_data_without_labels_is_refused(tmp_path):
    (tmp_path / "synthetic.yaml").write_text("data: {loader: synthetic}\nmodel: {name: test_resnet}")
    done = make(str(tmp_path / "synthetic.yaml"), "--out", str(tmp_path / "noise.tsv"))
    assert done.returncode == 2
    assert "synthetic has no labels to replace" in done.stderr
    assert not (tmp_path / "noise.tsv").exists()

"""The tool on a small folder; what it wrote is read by the code that reads a run's data."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.commands import distort
from fastaug.data.distortion_files import read_truth
from fastaug.distributed import build_accelerator
from fastaug.errors import DataError
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


def fresh():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """run_tool("word", ...) -> (exit code, what was printed, errors)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["distort.py", *map(str, words)])
        try:
            code = distort.main()
        except SystemExit as ended:
            code = ended.code
        fresh()
        return code, *capsys.readouterr()

    return run


def data(recipe: Path, *overrides: str):
    settings = read_recipe(recipe, list(overrides))
    found = find_data(settings, build_accelerator(settings))
    fresh()
    return found


def test_what_is_written_is_read_back_and_the_rest_stays_clean(recipe, tmp_path, run_tool):
    out = tmp_path / "new/set"
    code, said, errors = run_tool(recipe, "--imbalance", 5, "--noise", 0.4, "--out", out)
    assert code == 0, errors
    assert f"train with: data.splits={out}/splits data.labels={out}/labels.tsv" in said
    before = data(recipe)
    parts = data(recipe, f"data.splits={out}/splits", f"data.labels={out}/labels.tsv")
    assert np.bincount(parts.folder_labels[parts.splits.train])[0] == 10
    assert len(parts.splits.train) == 10 + 2
    wrong = np.flatnonzero(parts.folder_labels != parts.index.labels)
    assert len(wrong) == round(0.4 * 12)
    assert set(wrong) <= set(parts.splits.train)
    for role in ("meta", "select", "test"):
        assert parts.splits.of(role).tolist() == before.splits.of(role).tolist()
    control = data(recipe, f"data.splits={out}/control", f"data.labels={out}/labels.tsv").splits
    assert control.train.tolist() == sorted([*parts.splits.train, *before.splits.meta])
    assert (len(control.meta), control.test.tolist()) == (0, before.splits.test.tolist())
    record = json.loads((out / "distortion.json").read_text())
    assert record["classes"]["cat"]["images"] == 10
    assert (record["training_images"], record["wrong_labels"], record["realised_imbalance"]) == (12, 5, 5)
    ids, true = read_truth(out, before.index)
    assert (ids.tolist(), true.tolist()) == (parts.splits.train.tolist(), parts.folder_labels[ids].tolist())


def test_the_same_arguments_write_the_same_bytes_and_others_are_refused(recipe, tmp_path, run_tool):
    words = [recipe, "--subsample", 0.9, "--noise", 0.3, "--kind", "classwise", "--seed", 3, "--out"]
    files = []
    for name in ("one", "two", "one"):
        assert run_tool(*words, tmp_path / name)[0] == 0
        found = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        files.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in found])
    assert files[0] == files[1] == files[2]
    assert run_tool(*words, tmp_path / "one", "run.plant=0.5")[0] == 0  # what training flips is not there yet
    code, _, errors = run_tool(recipe, "--noise", 0.2, "--out", tmp_path / "one")
    assert code == 3
    assert "is of another distortion, with another subsample" in errors


@pytest.mark.parametrize("ablation", ["overfit", "oversplit"])
def test_ablations_share_a_split_loudly(recipe, tmp_path, run_tool, ablation, capsys):
    out = tmp_path / "set"
    code, _, errors = run_tool(recipe, f"--{ablation}", "--noise", 0.2, "--out", out)
    assert code == 0
    assert {"overfit": "UPPER BOUND", "oversplit": "wrong labels too"}[ablation] in errors
    role = {"overfit": "test", "oversplit": "train"}[ablation]
    parts = data(recipe, f"data.splits={out}/splits", f"data.labels={out}/labels.tsv")
    assert f"makes the meta split the {role} split" in capsys.readouterr().err
    assert parts.splits.meta.tolist() == parts.splits.of(role).tolist()
    assert parts.splits.meta_shares == role
    assert len(parts.splits.train) == {"overfit": 30, "oversplit": 36}[ablation]
    assert (out / "control").exists() == (ablation == "oversplit")
    if ablation == "overfit":
        with pytest.raises(DataError, match="its meta split is the test split"):
            parts.with_meta()
    else:
        assert parts.with_meta().splits.train.tolist() == parts.splits.train.tolist()


def test_repairs_are_judged_by_the_truth(recipe, tmp_path, run_tool):
    out = tmp_path / "set"
    assert run_tool(recipe, "--noise", 0.2, "--kind", "pairwise", "--out", out)[0] == 0
    lines = (out / "labels.tsv").read_text().splitlines()
    wrong = [int(line.split("\t")[0]) for line in lines]
    right = next(i for i in data(recipe).splits.train.tolist() if i not in wrong)
    spoiled = f"{right}\t{'dog' if data(recipe).index.labels[right] != 1 else 'cat'}"
    (tmp_path / "mended.tsv").write_text("\n".join([*lines[2:], spoiled]))
    judged = (recipe, f"data.labels={tmp_path}/mended.tsv", "--judge", out)
    code, said, errors = run_tool(*judged)
    assert code == 0, errors
    assert run_tool(*judged, "run.plant=0.5") == (code, said, errors)
    code, _, errors = run_tool(*judged[:-1], tmp_path / "nowhere")
    assert code == 3
    assert f"{tmp_path / 'nowhere'}: holds no distortion" in errors
    assert "wrong before: 6\nrepaired: 2\n" in said
    assert "still wrong: 4\nright ones spoiled: 1\n" in said
    code, _, errors = run_tool(recipe, "--judge", out, "--noise", 0.2)
    assert code == 2
    assert "--judge draws nothing: leave --noise out" in errors
    Image.new("RGB", (8, 8)).save(tmp_path / "images/train/cat/new.png")
    code, _, errors = run_tool(recipe, f"data.labels={tmp_path}/mended.tsv", "--judge", out)
    assert code == 3
    assert f"{out}/truth.tsv: is about other images than data.root has now" in errors


def test_labels_of_folders_are_the_truth_and_not_judged_by_it(recipe, tmp_path, run_tool):
    out = tmp_path / "set"
    assert run_tool(recipe, "--noise", 0.2, "--out", out)[0] == 0
    code, said, errors = run_tool(recipe, "--judge", out)
    assert (code, said) == (2, "")
    assert "data.labels: null leaves the labels of the folders, which are the truth" in errors
    assert f"data.labels={out}/labels.tsv" in errors
    code, said, errors = run_tool(recipe, f"data.labels={out}/labels.tsv", "--judge", out)
    assert code == 0, errors
    assert "wrong before: 6\nrepaired: 0\nleft out of training: 0\nstill wrong: 6\n" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.root=''", "data.loader=synthetic"], "synthetic has no labels to replace"),
        (
            ["data.table=t.csv", "data.multi_label=columns", "augment.loss=bce", "augment.smoothing=0"],
            "data.multi_label: a distortion replaces the one label of an image",
        ),
        (["data.labels=x.tsv"], "data.labels: a distortion is drawn of the labels of the folders"),
        (["--noise", "2"], "--noise: the share of wrong labels must be in"),
        (["--kind", "confusion", "--confusion", "no.csv", "--noise", ".1"], "no.csv: is no confusion matrix"),
        (["--kind", "confusion"], "need one another"),
        (["--human", "x.pt", "--noise", ".1"], "leave --noise out"),
        (["--column", "aggre_label"], "--column is one of --human FILE"),
    ],
)
def test_what_cannot_be_drawn_is_named(recipe, tmp_path, run_tool, words, said):
    code, _, errors = run_tool(recipe, *words, "--out", tmp_path / "set")
    assert code in (2, 3)
    assert said in errors
    assert not (tmp_path / "set").exists()


def test_a_class_left_with_no_image_is_named(recipe, tmp_path, run_tool):
    assert (
        "classes with one training image or none: " in run_tool(recipe, "--imbalance", 10, "--out", tmp_path / "s")[2]
    )


@pytest.mark.slow
def test_it_starts_as_a_person_starts_it(recipe, tmp_path):
    command = [sys.executable, str(REPO / "tools/distort.py"), str(recipe), "--noise", "0.4", "--out", "set"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "training_images 30, wrong_labels 12, realised_noise 0.4" in done.stdout

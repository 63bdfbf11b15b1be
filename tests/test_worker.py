"""How runs end on data that cannot be used: before the first step, with a code and a message that says what to do."""

import json

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.recipe_reading import read_recipe
from fastaug.worker import run


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def attempt(tmp_path):
    """attempt("key=value", ...) -> (exit code, reason in status.json)."""

    def start(*overrides):
        path = tmp_path / "r.yaml"
        path.write_text(
            "model: {name: test_resnet}\ndata: {img_size: 32, threads: 1}\ntrain: {epochs: 1, batch_size: 4}"
        )
        code = run(read_recipe(path, [f"run.dir={tmp_path / 'run'}", *overrides]))
        ended = json.loads((tmp_path / "run" / "status.json").read_text())
        assert ended["code"] == code
        assert ended["step"] == 0
        return code, ended["reason"]

    return start


def test_missing_folder(attempt, tmp_path):
    code, reason = attempt(f"data.root={tmp_path / 'nowhere'}")
    assert code == 3
    assert "nowhere" in reason


def test_no_classes(attempt, tmp_path):
    (tmp_path / "empty").mkdir()
    code, reason = attempt(f"data.root={tmp_path / 'empty'}")
    assert code == 3
    assert "holds no class folders" in reason


def test_empty_class(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4)
    (root / "hollow").mkdir()
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5")
    assert code == 3
    assert "hollow" in reason


def test_classes_that_differ(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4, splits=("train", "val"))
    first = sorted(path for path in (root / "val").iterdir())[0]
    first.rename(root / "val" / "stranger")
    code, reason = attempt(f"data.root={root}")
    assert code == 3
    assert "stranger" in reason
    assert first.name in reason


def test_one_image(attempt, jpeg_folder):
    root = jpeg_folder(classes=1, images=1)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5")
    assert code == 3
    assert reason


def test_batch_larger_than_the_set(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5", "train.batch_size=64")
    assert code == 3
    assert "train.batch_size: 64" in reason
    assert "4 images" in reason


def test_overlapping_splits(attempt, jpeg_folder, tmp_path):
    root = jpeg_folder(classes=2, images=4)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("0\n1\n4\n5\n")
    (lists / "test.txt").write_text("5\n6\n")
    code, reason = attempt(f"data.root={root}", f"data.splits={lists}")
    assert code == 3
    assert "train and test share 1 images" in reason
    assert "id 5" in reason


def test_a_last_batch_of_one_image_is_refused(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=5)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.1", "train.batch_size=7")
    assert code == 3
    assert "train.drop_last=true" in reason


def test_unknown_network(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5", "model.name=resnet_18")
    assert code == 2
    assert "model.name" in reason


def test_a_tracker_that_is_not_installed(attempt, jpeg_folder):
    code, reason = attempt(f"data.root={jpeg_folder()}", "data.test_fraction=0.5", "run.trackers=[wandb]")
    assert code == 2
    assert "pip install wandb" in reason

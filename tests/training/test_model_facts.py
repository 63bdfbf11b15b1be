"""model.json: what a checkpoint says of its network, and what is done where it does not."""

import json
import shutil
from pathlib import Path

import pytest

from fastaug.errors import RecipeError, StorageError
from fastaug.training import checkpoint
from fastaug.training.model_facts import read_facts


def last(run: Path) -> Path:
    found = checkpoint.latest(run / "checkpoints")[0]
    assert found is not None
    return found


def without(run: Path, folder: Path, *files: str, names: bool = True) -> Path:
    """A copy of the run whose last checkpoint is of a version before model.json; less `files`, and less its names."""
    shutil.copytree(run, folder)
    path = last(folder)
    weights, state = checkpoint.load(path)
    if not names:
        del state["classes"]
    checkpoint.save(folder / "checkpoints", int(path.name[5:]), weights, state)
    for name in files:
        (folder / name).unlink()
    return last(folder)


def test_every_checkpoint_says_what_its_network_needs(tiny_run: Path) -> None:
    classes = json.loads((tiny_run / "classes.json").read_text())["classes"]
    steps = checkpoint.steps_of(tiny_run / "checkpoints")
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["top1"] for line in lines if line["event"] == "select" and line["weights"] == "raw"}
    assert len(steps) == 2
    for step in steps:
        facts = read_facts(tiny_run / "checkpoints" / checkpoint.name_of(step))
        assert (facts.step, list(facts.classes), facts.incomplete) == (step, classes, None)
        assert facts.preprocessing.input_size == (3, 32, 32)
        assert facts.preprocessing.short_side == 40
        assert (facts.preprocessing.crop, facts.preprocessing.interpolation) == ("center", "bilinear")
        assert facts.recipe.model.name == "test_resnet"
        assert facts.figures is not None
        assert facts.figures["top1"] == measured[step]
    assert facts.best_step in steps


def test_the_last_checkpoint_has_the_result_of_the_run_and_stays_sound(tiny_run: Path) -> None:
    result = json.loads((tiny_run / "result.json").read_text())
    facts = read_facts(last(tiny_run))
    assert facts.result is not None
    assert facts.result["top1"] == result["top1"]
    assert facts.figures_of("raw") == facts.result
    assert facts.figures_of("ema") is None
    first = tiny_run / "checkpoints" / checkpoint.name_of(checkpoint.steps_of(tiny_run / "checkpoints")[0])
    assert read_facts(first).result is None


def test_an_older_checkpoint_is_completed_from_its_run_folder_and_says_so(tiny_run: Path, tmp_path: Path) -> None:
    path, whole = without(tiny_run, tmp_path / "run"), read_facts(last(tiny_run))
    facts = read_facts(path)
    assert facts.incomplete is not None
    assert "wrote no model.json" in facts.incomplete
    assert (facts.classes, facts.preprocessing, facts.step) == (whole.classes, whole.preprocessing, whole.step)


def test_names_come_from_classes_json_where_the_state_has_none(tiny_run: Path, tmp_path: Path) -> None:
    facts = read_facts(without(tiny_run, tmp_path / "run", names=False))
    assert facts.classes == read_facts(last(tiny_run)).classes


@pytest.mark.parametrize(
    ("missing", "names", "said"),
    [("recipe.yaml", True, "has no recipe.yaml"), ("classes.json", False, "kept no class names")],
)
def test_what_cannot_be_completed_is_refused_with_the_remedy(
    tiny_run: Path, tmp_path: Path, missing: str, names: bool, said: str
) -> None:
    path = without(tiny_run, tmp_path / "run", missing, names=names)
    with pytest.raises(StorageError, match=f"{said}.*or continue that run"):
        read_facts(path)


def test_a_damaged_one_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    file = last(tmp_path / "run") / "model.json"
    file.write_bytes(file.read_bytes().replace(b"class10", b"class99"))
    with pytest.raises(StorageError, match=r"damaged checkpoint: model\.json does not match"):
        read_facts(file.parent)


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("format", 99, StorageError, "format 99, this version reads 1; update fastaug"),
        ("recipe", {"schema": 99}, RecipeError, "written by a later fastaug"),
        ("classes", None, StorageError, "lacks"),
    ],
)
def test_one_of_another_version_is_refused(
    tiny_run: Path, tmp_path: Path, key: str, value: object, error: type[Exception], said: str
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    path = last(tmp_path / "run")
    values = json.loads((path / "model.json").read_text()) | {key: value}
    checkpoint.attach(path, "model.json", json.dumps(values).encode())
    with pytest.raises(error, match=said):
        read_facts(path)

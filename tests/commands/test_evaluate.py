"""Evaluation on other folders than those trained on, as a person starts it: classes are matched by name or refused."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.commands.evaluate import parse
from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint
from fastaug.training.worker import run

Evaluate = Callable[..., tuple[int, dict[str, object]]]
REPO = Path(__file__).resolve().parents[2]
COLOURS = {"cherry": (200, 30, 30), "leaf": (30, 200, 30), "sea": (30, 30, 200)}
RECIPE = """
data: {img_size: 16, crop: whole, crop_pct: 1.0, threads: 1, loader: resident}
model: {name: test_resnet}
optim: {opt: adamw, lr: 2e-3, sched: constant}
augment: {hflip: 0}
train: {epochs: 6, batch_size: 12}
eval: {every: 0}
"""


def images(root: Path, names: dict[str, str], count: int) -> Path:
    """root/{train,val} with class folders of noisy images: {folder's name: its colour}."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, colour in names.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(COLOURS[colour]) + draw.normal(0, 10, (16, 16, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a network that knows the colours; its data lie beside it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(RECIPE)
    root = images(folder / "images", dict(zip(COLOURS, COLOURS, strict=True)), 16)
    assert run(read_recipe(folder / "recipe.yaml", [f"data.root={root}", f"run.dir={folder / 'run'}"])) == 0
    assert json.loads((folder / "run" / "result.json").read_text())["top1"] == 1.0
    return folder / "run"


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """evaluate(run folder, another root) -> exit code of the tool, started in this process, and the figures."""
    file = tmp_path / "figures.json"

    def start(folder: Path, root: Path, *words: str) -> tuple[int, dict[str, object]]:
        monkeypatch.setattr(sys, "path", ["", *sys.path])  # whose first entry the tool replaces
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(folder), f"data.root={root}", "--json", str(file), *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPO / "tools" / "evaluate.py"), run_name="__main__")
        code = end.value.code or 0
        return int(code), {} if code else json.loads(file.read_text())["figures"]

    return start


def test_classes_of_another_root_are_matched_by_name(trained: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    some = images(tmp_path / "some", {"sea": "sea", "leaf": "leaf"}, 5)  # places 0 and 1 there, 1 and 2 in the network
    code, figures = evaluate(trained, some)
    assert code == 0
    assert (figures["top1"], figures["images"]) == (1.0, 10)


def test_labels_that_were_replaced_in_training_are_not_sought_in_another_root(
    trained: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "mine.tsv").write_text("train/sky/0.png\tsea\n")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("labels: null", f"labels: {tmp_path}/mine.tsv"))
    some = images(tmp_path / "some", {"sea": "sea", "leaf": "leaf"}, 5)
    code, figures = evaluate(run, some)
    assert (code, figures.get("top1")) == (0, 1.0)
    assert evaluate(run, some, f"data.labels={tmp_path}/other.tsv")[0] == 3  # asked for, and read


def test_the_table_of_classes_and_the_cost_of_the_network(
    trained: Path, tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the blue images lie under the name of the green ones: what the network takes for its mistakes."""
    root = images(tmp_path / "mixed", {"leaf": "leaf", "sea": "sea"}, 4)
    for number in (0, 1):
        (root / "val" / "sea" / f"{number}.png").rename(root / "val" / "leaf" / f"blue{number}.png")
    code, figures = evaluate(trained, root, "--per-class", "--latency", "3")
    assert code == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith(("cherry", "leaf", "sea"))]
    assert ["leaf", "0.8000", "1.0000", "0.6667", "6"] in rows
    assert ["cherry", "-", "-", "-", "0"] in rows
    assert "leaf taken for sea: 2 images, 33.3% of the class" in said
    assert figures["confusion"] == {"leaf": {"leaf": 4, "sea": 2}, "sea": {"sea": 2}}
    assert figures["latency_runs"] == 3
    assert 100_000 < figures["parameters"] < 1_000_000
    assert evaluate(trained, root, "--latency", "0")[0] == 2


def test_classes_of_other_names_are_refused_with_both_lists(
    trained: Path, tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = images(tmp_path / "renamed", {"a_sea": "sea", "cherry": "cherry", "leaf ": "leaf"}, 5)
    assert evaluate(trained, renamed)[0] == 3
    said = capsys.readouterr().err
    assert "not trained on the classes a_sea, 'leaf '; it knows 3 classes: cherry, leaf, sea" in said
    assert "data.root has 3: a_sea, cherry, 'leaf '" in said


def test_names_are_in_the_run_folder_and_in_every_checkpoint(trained: Path) -> None:
    assert json.loads((trained / "classes.json").read_text()) == {"classes": list(COLOURS)}
    for step in checkpoint.steps_of(trained / "checkpoints"):
        assert checkpoint.load(trained / "checkpoints" / checkpoint.name_of(step)).state["classes"] == list(COLOURS)


def without_names(trained: Path, folder: Path) -> Path:
    """A copy of the run as fastaug 0.1.0 left it."""
    shutil.copytree(trained, folder)
    last = checkpoint.latest(folder / "checkpoints")[0]
    assert last is not None
    weights, state = checkpoint.load(last)
    del state["classes"]
    checkpoint.save(folder / "checkpoints", int(last.name[5:]), weights, state)
    (folder / "classes.json").unlink()
    return folder


def test_a_checkpoint_without_names_is_evaluated_by_order_and_says_so(
    trained: Path, tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    old = without_names(trained, tmp_path / "old")
    code, figures = evaluate(old, images(tmp_path / "renamed", {"a": "cherry", "b": "leaf", "c": "sea"}, 5))
    assert (code, figures["top1"]) == (0, 1.0)
    assert "kept no class names: classes are matched by their order" in capsys.readouterr().out


def go_on(folder: Path, root: Path) -> int:
    recipe = read_recipe(folder.parent / "recipe.yaml", [f"data.root={root}", f"run.dir={folder}"])
    return run(recipe)


def test_a_run_without_names_continues_and_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained.parent / "recipe.yaml", tmp_path)
    assert go_on(without_names(trained, tmp_path / "old"), trained.parent / "images") == 0
    assert "kept no class names: they are taken to be those of now" in capsys.readouterr().out
    assert (tmp_path / "old" / "classes.json").exists()


def test_a_run_does_not_continue_on_other_classes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained.parent / "recipe.yaml", tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    other = images(tmp_path / "other", {"cherry": "cherry", "leaf": "leaf", "water": "sea"}, 16)
    assert go_on(tmp_path / "run", other) == 3
    said = capsys.readouterr().out
    assert "trained on the 3 classes cherry, leaf, sea, and there are now 3: cherry, leaf, water" in said
    assert "no longer there: sea; new: water" in said
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == {"classes": list(COLOURS)}


def test_classes_are_named_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "images", {"leaf": "leaf", "sea": "sea", "void": "sea"}, 12)
    for number in range(12):
        (root / "train" / "void" / f"{number}.png").write_text("no picture")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = [f"data.root={root}", f"run.dir={tmp_path / 'run'}", "train.epochs=1"]
    assert run(read_recipe(tmp_path / "recipe.yaml", words)) == 0
    said = capsys.readouterr().out
    assert "classes: leaf, sea, void" in said
    assert "warning: train has no readable image of 1 classes: void" in said


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of which a third of the blue ones lie under the name of the green ones; one of the red ones is broken."""
    root = images(tmp_path_factory.mktemp("mixed") / "images", dict(zip(COLOURS, COLOURS, strict=True)), 12)
    for number in range(4):
        (root / "val" / "sea" / f"{number}.png").rename(root / "val" / "leaf" / f"blue{number}.png")
    (root / "val" / "cherry" / "3.png").write_text("no picture")
    return root


def test_checks_stand_beside_the_figures(
    trained: Path, mixed: Path, tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is sure of colours, the wrongly named ones too, and was never shown grey."""
    (tmp_path / "grey").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 20), (90 + 10 * number,) * 3).save(tmp_path / "grey" / f"{number}.png")
    (tmp_path / "map.json").write_text(json.dumps({"classes": ["leaf", "sea"]}))
    words = ["--occlusion", "2", "--corruptions", "contrast,fog", "--severities", "1..2", "--temperature", "0.5"]
    words += ["--ood", str(tmp_path / "grey"), "--label-map", str(tmp_path / "map.json")]
    code, figures = evaluate(trained, mixed, *words, "--charts", str(tmp_path / "checks.html"))
    assert code == 0
    plain = evaluate(trained, mixed)[1]
    checks = ("calibration", "occlusion", "ood", "corruptions", "label_map")
    assert {name: value for name, value in figures.items() if name not in checks} == plain
    assert (plain["images"], plain["skipped"]) == (35, 1)

    found = figures["calibration"]
    assert found["temperature"] > 1
    assert found["after"]["nll"] < found["before"]["nll"]
    assert (found["fitted_on"], found["fitted_on_images"] + found["images"]) == ("0.5", 35)
    for curve in figures["occlusion"].values():
        assert curve[0]["visibility"] == 1
        assert curve[0]["top1"] == plain["top1"]
        assert curve[0]["nll"] == plain["nll"]
        assert curve[1]["visibility"] == pytest.approx(0.5, abs=0.05)
        assert curve[1]["nll"] != plain["nll"]
    assert (figures["ood"]["images"], figures["ood"]["ood_images"]) == (35, 5)
    assert figures["ood"]["max_softmax"]["auroc"] > 0.8
    assert list(figures["corruptions"]["errors"]) == ["fog", "contrast"]
    assert figures["corruptions"]["clean_error"] == 1 - plain["top1"]
    assert (figures["label_map"]["images"], figures["label_map"]["left_out"]) == (24, 12)
    assert figures["label_map"]["top1"] == pytest.approx(20 / 24)
    page = (tmp_path / "checks.html").read_text()
    assert page.count("<svg ") == 2 + 2 + 1  # reliability before and after, both occlusions, corruptions
    said = capsys.readouterr().out
    assert f"fitted on 0.5 ({found['fitted_on_images']} images)" in said
    assert "mean corruption error" in said
    assert all(line in page for line in said.splitlines() if line.startswith("  energy"))


def test_without_a_best_temperature_the_other_checks_are_reported(
    trained: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is right about every image that T is to be fitted on."""
    code, figures = evaluate(trained, trained.parent / "images", "--temperature", "0.5", "--occlusion", "1")
    assert code == 0
    found = figures["calibration"]
    assert (found["temperature"], found["after"]) == (None, None)
    assert "right about all 24 images" in found["not_fitted"]
    assert found["before"]["nll"] == pytest.approx(figures["nll"], rel=0.5)
    assert figures["occlusion"]["box"][0]["top1"] == 1.0
    assert "temperature: the network is right about all 24 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1", "3"], "'3' stands alone; --severities is one word, such as 1..5 or 1,3"),
        (["1,", "3"], "'3' stands alone; --severities is one word"),
        (["1-3"], "'1-3' is no list of severities; write it as 1..5, 3 or 1,3"),
    ],
)
def test_severities_in_other_forms_are_refused_with_the_right_one(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["runs/a", "--corruptions", "fog", "--severities", *words])
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert parse(["runs/a", "--severities", "1,3", "data.root=x"]).severities == (1, 3)


def test_words_that_stand_alone_are_overrides_where_no_severities_are_given() -> None:
    assert parse(["runs/a", "3"]).overrides == ["3"]
    assert parse(["runs/a", "--occlusion", "5", "7"]).overrides == ["7"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--ood", "nowhere"], 3, "ood: nowhere: nowhere: no such file or folder; name"),
        (["--ood", "{tmp}"], 3, "no image below this folder; name one that holds images"),
        (["--corruptions", "fgo"], 2, "'fgo' is none; the nearest is fog"),
        (["--corruptions", "--severities", "0..2"], 2, "they are 1 to 5"),
        (["--temperature"], 2, "there is no select split (data.select_fraction=0); train with it set, or on a share"),
        (["--temperature", "2"], 2, "'2' is neither select nor meta, nor a share between 0 and 1"),
        (["--occlusion", "101"], 2, "101 is no number of points"),
        (["--label-map", "nothing.json"], 3, "nothing.json cannot be read"),
        (["--charts", "nowhere/a.html"], 2, "--charts: there is no folder nowhere; make it"),
        (["--charts", "charts"], 2, "--charts: charts is to be one HTML page; name it charts.html"),
        (["--temperature", "select", "data.select_fraction=0.5"], 2, "the run was trained on other splits"),
    ],
)
def test_checks_that_cannot_be_done_are_refused_before_any_work(
    trained: Path,
    tmp_path: Path,
    evaluate: Evaluate,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    (tmp_path / "empty").mkdir()
    words = [word.format(tmp=tmp_path / "empty") for word in words]
    assert evaluate(trained, trained.parent / "images", *words)[0] == code
    told = capsys.readouterr()
    assert said in told.err
    assert "top1" not in told.out
    assert not (tmp_path / "figures.json").exists()

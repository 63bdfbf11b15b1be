"""Runs from tables, of grey images and over a background: what they train on, and what they refuse."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.data.index import load_index
from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

RECIPE = """
run: {log_every: 1, log_ids: true, log_losses: true}
data: {img_size: 20, threads: 1}
model: {name: test_resnet}
optim: {lr: 0.01}
train: {epochs: 1, batch_size: 8}
eval: {batch_size: 4}
"""
Train = Callable[..., tuple[int, Path]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """train("name", "key=value", ...) -> exit code and run folder."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(name: str, *overrides: str) -> tuple[int, Path]:
        folder = tmp_path / name
        code = run(read_recipe(tmp_path / "recipe.yaml", [f"run.dir={folder}", *overrides]))
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return code, folder

    return start


@pytest.fixture
def root(jpeg_folder: Callable[..., Path]) -> Path:
    """16 training and 16 test images of two classes."""
    return jpeg_folder(splits=("train", "val"))


def table_of(root: Path, file: Path) -> Path:
    """The table that says what the folders of `root` say."""
    index = load_index(root, threads=1)
    with open(file, "w", newline="") as out:
        write = csv.writer(out).writerow
        write(["path", "label", "split"])
        for path in reversed([path.decode() for path in index.paths]):
            split, label, _ = path.split("/")
            write([path, label, split])
    return file


def trained(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [str(line["loss"]) for line in lines if "loss" in line]
    return [*losses, (folder / "samples.csv").read_text(), (folder / "ids-0.jsonl").read_text()]


def test_a_table_trains_as_the_folders_and_is_refused_once_changed(
    root: Path, tmp_path: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    table = table_of(root, tmp_path / "table.csv")
    keys = [f"data.root={root}", f"data.table={table}"]
    assert [train("folders", f"data.root={root}")[0], train("table", *keys)[0]] == [0, 0]
    assert trained(tmp_path / "folders") == trained(tmp_path / "table") != []
    moved = table.rename(tmp_path / "moved.csv")  # the same table elsewhere continues
    assert train("table", f"data.root={root}", f"data.table={moved}")[0] == 0
    (tmp_path / "table" / "result.json").unlink()
    moved.write_text(moved.read_text().replace("train/class0/000.jpg,class0", "train/class0/000.jpg,class1"))
    assert train("table", f"data.root={root}", f"data.table={moved}")[0] == 3
    assert "put the folder and the files of data.table" in capfd.readouterr().out


def test_a_table_with_lost_files_stops_before_anything_is_written(
    root: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    table = table_of(root, root / "table.csv")  # paths are relative to it, without data.root
    (root / "val" / "class1" / "007.jpg").unlink()
    code, folder = train("lost", f"data.table={table}")
    assert code == 3
    assert "a file that is not there or cannot be reached: line 2 (val/class1/007.jpg)" in capfd.readouterr().out
    assert not {path.name for path in folder.iterdir()} & {"metrics.jsonl", "classes.json", "result.json"}
    assert not any((folder / "checkpoints").iterdir())


def test_grey_images_over_a_background_train_to_a_result(root: Path, train: Train) -> None:
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            image.putalpha(image.convert("L"))
            image.save(path.with_suffix(".png"))
        path.unlink()
    grey = ["data.channels=1", "data.mean=[0.5]", "data.std=[0.25]", "data.background=white"]
    changed = ["augment.cutmix=1", "augment.reprob=1", "augment.aa=ta_wide"]
    code, folder = train("grey", f"data.root={root}", *grey, *changed)
    assert code == 0
    assert json.loads((folder / "result.json").read_text())["test"]["skipped"] == 0


def test_images_of_many_classes_train_alike_from_labels_and_from_columns(
    root: Path, tmp_path: Path, train: Train
) -> None:
    labels, columns = ["path,label,split"], ["path,first,third,split"]
    for number, path in enumerate(path.decode() for path in load_index(root, threads=1).paths):
        first, third, split = "class0" in path, number % 3 == 0, path.split("/")[0]
        labels.append(f"{path},{'|'.join(['first'] * first + ['third'] * third)},{split}")
        columns.append(f"{path},{first:d},{third:d},{split}")
    keys = [f"data.root={root}", "data.select_fraction=0.25", "augment.loss=bce", "run.log_losses=false"]
    keys += ["augment.cutmix=1", "augment.soften=none"]
    losses = []
    for kind, rows in (("separated", labels), ("columns", columns)):
        table = tmp_path / f"{kind}.csv"
        table.write_text("\n".join(rows))
        code, folder = train(kind, *keys, f"data.table={table}", f"data.multi_label={kind}")
        assert code == 0
        result = json.loads((folder / "result.json").read_text())
        assert (result["test"]["images"], len(result["test"]["ap_by_class"])) == (16, 2)
        assert 0 < result["mean_ap"] <= 1
        assert set(result["best"]) == {"step", "metric", "select_mean_ap"}
        losses.append([json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == losses[1]
    assert losses[0][0] is not None

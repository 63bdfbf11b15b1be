"""Runs from tables, of grey images and over a background: what they train on, and what they refuse."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

import fastaug
from fastaug.data.channel_files import decode_channels
from fastaug.data.image_files import read_image_file
from fastaug.data.index import load_index
from fastaug.data.listing import Listing
from fastaug.data.loose_files import find_images
from fastaug.inference.prediction import build_predictor, predict
from fastaug.recipe.reading import read_recipe
from fastaug.reports.thumbnails import opened
from fastaug.training.worker import run
from tests.data.channel_folders import channel_folder

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


def test_images_of_five_channels_train_to_a_network_that_is_used(
    tmp_path: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    root = channel_folder(tmp_path / "five", 5)
    (root / "val" / "class0" / "0-pages.tif").write_bytes(b"no image")
    keys = ["data.channels=5", "data.mean=[0.2,0.2,0.2,0.2,0.3]", "data.std=[0.1,0.1,0.1,0.1,0.2]"]
    changed = ["augment.shift=0.3", "augment.cutmix=1", "augment.reprob=1", "augment.remode=rand", "model.drop=0.1"]
    code, folder = train("five", f"data.root={root}", *keys, *changed)
    assert code == 0
    assert json.loads((folder / "result.json").read_text())["test"]["skipped"] == 1
    assert "0-pages.tif: no image header" in capfd.readouterr().out

    predictor = build_predictor(folder)
    paths = find_images([root / "val"], 5).paths
    found = predict(predictor, paths)
    assert [os.path.basename(paths[row]) for row in found.damaged] == [b"0-pages.tif"]
    model, transform, classes = fastaug.load(folder)
    for row, path in enumerate(paths):
        if row not in found.damaged:
            pixels = decode_channels(read_image_file(path)[0], 5)
            with torch.no_grad():
                chances = model(transform(pixels)[None]).double().softmax(1)[0]
            ranked = chances[torch.from_numpy(found.outputs[row])].numpy()
            assert np.allclose(ranked, found.probabilities[row], atol=1e-6)
    assert classes == ("class0", "class1")
    with pytest.raises(ValueError, match=r"arrays \[height, width, 5\], found uint8 \[8, 8, 3\]"):
        transform(np.zeros((8, 8, 3), np.uint8))
    index = load_index(root, threads=1, listing=Listing(channels=5))
    assert np.array_equal(np.asarray(opened(index, 3)), decode_channels(read_image_file(index.path(3))[0], 5)[..., :3])


def test_files_of_other_channels_alone_are_refused(root: Path, train: Train, capfd: pytest.CaptureFixture[str]) -> None:
    keys = ["data.channels=4", "data.mean=[0,0,0,0]", "data.std=[1,1,1,1]"]
    assert train("four", f"data.root={root}", *keys)[0] == 3
    said = " ".join(capfd.readouterr().out.split())
    assert "all 16 images of train are damaged, the first" in said
    assert "3 channels of" in said
    assert "where data.channels is 4" in said

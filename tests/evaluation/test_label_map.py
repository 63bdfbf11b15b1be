import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fastaug.data.build import DataParts
from fastaug.data.index import Folder, Index
from fastaug.data.path_table import PathTable
from fastaug.data.splits import Splits
from fastaug.errors import DataError
from fastaug.evaluation.label_map import MappedAccuracy, read_label_map

CLASSES = ("bird", "cat", "dog")
PATHS = (b"val/bird/4.png", b"val/cat/1.png", b"val/cat/3.png", b"val/dog/2.png")
IDS = np.arange(4)


@pytest.fixture
def parts() -> DataParts:
    """Four test images, of which the file names are in another order than the paths."""
    numbers = np.zeros(4, np.int32)
    index = Index(
        root=Path("/"),
        classes=CLASSES,
        paths=PathTable.of(PATHS),
        labels=np.array([0, 1, 1, 2]),
        heights=numbers,
        widths=numbers,
        status=np.zeros(4, np.uint8),
        folders=np.full(4, Folder.TEST, np.uint8),
        reasons={},
    )
    return DataParts(CLASSES, Splits(train=IDS[:0], meta=IDS[:0], select=IDS[:0], test=IDS), index)


def written(folder: Path, content: object, name: str = "map.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


BY_IMAGE = {"val/bird/4.png": ["bird", 1], "val/cat/1.png": [], "2": ["dog"], "val/dog/2.png": ["cat", "dog"]}


def test_several_labels_and_none(tmp_path: Path, parts: DataParts) -> None:
    found = read_label_map(written(tmp_path, {"images": BY_IMAGE}), parts, IDS)
    assert found.accepted == {0: {0, 1}, 2: {2}, 3: {1, 2}}
    assert (found.left_out, found.outputs) == (1, [0, 1, 2])
    table = "Image;labels\nval/bird/4.png;bird | cat\nval/cat/1.png;\n2;dog\nval/dog/2.png;cat|dog\n"
    assert read_label_map(written(tmp_path, table, "map.csv"), parts, IDS) == found
    in_order_of_names = [[], ["cat", "dog"], ["dog"], [0, 1]]  # as ReaL's file
    assert read_label_map(written(tmp_path, in_order_of_names), parts, IDS) == found


def test_images_of_other_splits_may_be_named(tmp_path: Path, parts: DataParts) -> None:
    file = written(tmp_path, {"images": BY_IMAGE})
    assert set(read_label_map(file, parts, IDS[2:]).accepted) == {2, 3}


def test_accuracy_over_accepted_labels(tmp_path: Path, parts: DataParts) -> None:
    accuracy = MappedAccuracy(read_label_map(written(tmp_path, {"images": BY_IMAGE}), parts, IDS), torch.device("cpu"))
    logits = torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, float("nan"), 9.0]])
    accuracy.add(torch.tensor([0, 1]), logits[:2], torch.tensor([0, 1]))
    accuracy.add(torch.tensor([2, 3]), logits[2:], torch.tensor([1, 2]))
    figures = accuracy.figures(Accelerator(cpu=True))
    assert figures == {"kind": "images", "images": 3, "outputs": 3, "left_out": 1, "top1": pytest.approx(1 / 3)}


def test_accuracy_over_a_part_of_the_outputs(tmp_path: Path, parts: DataParts) -> None:
    accuracy = MappedAccuracy(
        read_label_map(written(tmp_path, {"classes": ["dog", "bird"]}), parts, IDS), torch.device("cpu")
    )
    accuracy.add(torch.arange(4), torch.tensor([[1.0, 9.0, 0.0]] * 4), parts.index.labels)  # type: ignore[union-attr]
    figures = accuracy.figures(Accelerator(cpu=True))
    assert figures == {"kind": "classes", "images": 2, "outputs": 2, "left_out": 2, "top1": 0.5}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ({"labels": {}}, "write it so"),
        ({"images": []}, "'images' must hold a mapping"),
        ({"images": {"val/emu/1.png": []}}, "names images that data.root does not have: val/emu/1"),
        ({"images": {"val/cat/1.png": ["cat"]}}, "says nothing of 3 images of the split: val/bird/4.png"),
        ({"images": BY_IMAGE | {"val/cat/1.png": ["cta"]}}, "'cta' is no class .* the nearest class is cat"),
        ({"images": BY_IMAGE | {"val/cat/1.png": [3]}}, "3 is no class"),
        ({"images": BY_IMAGE | {"val/cat/1.png": [True]}}, "True is no class"),
        ({"images": BY_IMAGE | {"val/cat/1.png": "cat"}}, "must have a list of labels"),
        ({"images": BY_IMAGE | {"1": ["cat"]}}, "names 1 twice"),
        ({"images": {name: [] for name in BY_IMAGE}}, "leaves all 4 images out"),
        ({"classes": ["cat"]}, "leave nothing to tell apart"),
        ([[0], [1]], "2 lists of labels for 4 images"),
    ],
)
def test_what_nobody_knows_is_named(tmp_path: Path, parts: DataParts, content: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_label_map(written(tmp_path, content), parts, IDS)


def test_tables_name_each_image_once(tmp_path: Path, parts: DataParts) -> None:
    with pytest.raises(DataError, match=r"images that stand twice: val/cat/1\.png"):
        read_label_map(written(tmp_path, "image,labels\nval/cat/1.png,cat\nval/cat/1.png,\n", "m.csv"), parts, IDS)

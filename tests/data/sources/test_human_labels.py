"""Published labels by people, in files as torch.save writes them: the right rows, or refused by name."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastaug.data.image_headers import Status
from fastaug.data.index import Folder, Index
from fastaug.data.path_table import PathTable
from fastaug.data.sources.human_labels import human_labels
from fastaug.errors import DataError

CLEAN = np.array([0, 1, 2, 0, 1, 2])  # of rows 0 to 5
WORSE = np.array([0, 2, 2, 1, 1, 0])


@pytest.fixture
def index() -> Index:
    """Six images of three classes, files named by their row, in the order of their paths."""
    paths = sorted(f"train/{label}/{row:05d}.png".encode() for row, label in enumerate(CLEAN))
    labels, sizes = np.array([int(path.split(b"/")[1]) for path in paths]), np.full(6, 32, np.int32)
    zeros = np.zeros(6, np.uint8)
    columns = (labels, sizes, sizes, zeros + Status.OK, zeros + Folder.TRAIN)
    return Index(Path("/data"), ("0", "1", "2"), PathTable.of(paths), *columns, {})


def saved(file: Path, zipped: bool = True, **columns: object) -> Path:
    table = {"clean_label": CLEAN, "worse_label": WORSE, **columns}
    torch.save(table, file, _use_new_zipfile_serialization=zipped)
    return file


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_the_row_is_in_the_name_of_the_file(index: Index, tmp_path: Path, zipped: bool, kind: type) -> None:
    file = saved(tmp_path / "human.pt", zipped, worse_label=WORSE.astype(kind))
    ids, labels = human_labels(file, "worse_label", index, np.arange(6))
    found = {
        int(os.path.basename(index.paths[i])[:5]): label for i, label in zip(ids.tolist(), labels.tolist(), strict=True)
    }
    assert found == {1: 2, 3: 1, 5: 0}
    some = ids[1:]  # fewer images are trained on
    assert human_labels(file, "worse_label", index, some)[0].tolist() == some.tolist()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"worse_label": WORSE + 2}, "has label 4 in row 1, but data.root has 3 classes"),
        ({"worse_label": WORSE[:4]}, "has 4 labels, data.root training image 5"),
        ({"clean_label": WORSE}, "'clean_label' is not what data.root says"),
        ({"worse_label": WORSE.astype(float)}, "'worse_label' is no array of integers of one axis"),
    ],
)
def test_labels_of_another_set_are_refused(index: Index, tmp_path: Path, columns: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        human_labels(saved(tmp_path / "human.pt", **columns), "worse_label", index, np.arange(6))


def test_other_columns_and_files_are_named(index: Index, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'worst'; --column can be one of clean_label, worse_label"):
        human_labels(saved(tmp_path / "human.pt"), "worst", index, np.arange(6))
    for raw in (b"PK\x03\x04 no zip", b"nothing", b""):
        (tmp_path / "broken.pt").write_bytes(raw)
        with pytest.raises(DataError, match=r"broken\.pt"):
            human_labels(tmp_path / "broken.pt", "worse_label", index, np.arange(6))


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch harm",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_file_names_is_run(index: Index, tmp_path: Path, monkeypatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"asks for (posix|os)\.system"):
        human_labels(saved(tmp_path / "evil.pt", zipped, worse_label=Evil()), "worse_label", index, np.arange(6))
    assert not (tmp_path / "harm").exists()


def test_files_that_are_not_named_by_row_are_refused(index: Index, tmp_path: Path) -> None:
    other = replace(index, paths=PathTable.of([b"train/0/a%d.png" % i for i in range(6)]))
    with pytest.raises(DataError, match="files are not named by their row"):
        human_labels(saved(tmp_path / "human.pt"), "worse_label", other, np.arange(6))

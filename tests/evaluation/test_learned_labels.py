"""What learned labels made of wrong ones, as it is told of a run."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastaug.data.planting import Planted
from fastaug.evaluation.learned_labels import mended
from fastaug.evaluation.per_sample import samples_table

#           right, right, wrong, wrong, wrong; 5 is not trained on
TRUE = np.array([0, 1, 2, 0, 1, 2])
GIVEN = np.array([0, 1, 0, 1, 2, 0])
FIGURES = {
    "learned_label": torch.tensor([0, 2, 2, 2, 2, 2]),
    "learned_probability": torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
}


def parts(true: np.ndarray | None, given: np.ndarray = GIVEN, planted: list[int] | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        planted=None if planted is None else Planted(np.array(planted), given[planted]),
        index=SimpleNamespace(labels=given),
        folder_labels=true,
        splits=SimpleNamespace(train=np.arange(5)),
        classes=("cat", "dog", "cow"),
        name_of=lambda i: f"{i}.png",
    )


def test_shares_of_wrong_labels_repaired_and_right_ones_spoiled():
    assert mended(parts(TRUE), FIGURES) == {"labels_repaired": pytest.approx(1 / 3), "labels_spoiled": 0.5}


def test_only_what_can_be_known_is_told():
    assert mended(parts(GIVEN), FIGURES) == {"labels_spoiled": pytest.approx(3 / 5)}
    assert mended(parts((GIVEN + 1) % 3), FIGURES).keys() == {"labels_repaired"}
    assert mended(parts(TRUE), {"weight": torch.ones(6)}) == {}
    assert mended(parts(None), FIGURES) == {}


def test_labels_flipped_on_purpose_do_not_count():
    assert mended(parts(TRUE, planted=[1, 3]), FIGURES) == {"labels_repaired": 0.5, "labels_spoiled": 0.0}


def test_the_table_of_samples_names_the_learned_class():
    rows = list(csv.DictReader(io.StringIO(samples_table(parts(TRUE), FIGURES).decode())))
    by_id = {row["id"]: row for row in rows}
    assert by_id["2"]["class"] == "cat"
    assert by_id["2"]["learned_label"] == "cow"
    assert by_id["2"]["learned_probability"] == "0.7"

"""Predictions as CSV, JSON and parquet."""

import csv
import io
import json
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from fastaug.errors import RecipeError
from fastaug.inference import prediction_files
from fastaug.inference.prediction import Predictions
from fastaug.inference.prediction_files import as_csv, as_json, as_parquet, rows_of

FOUND = Predictions(
    checkpoint=Path("run/checkpoints/step-00000001"),
    classes=("a, b", "c"),
    paths=[b"/x/1.png", b"/x/\xff.png"],
    outputs=np.array([[1, 0], [-1, -1]]),
    probabilities=np.array([[0.75, 0.25], [np.nan, np.nan]]),
    damaged={1: "empty file"},
)


def test_every_image_has_a_row_and_a_damaged_one_its_reason() -> None:
    first = {"path": "/x/1.png", "class_1": "c", "probability_1": 0.75, "class_2": "a, b", "probability_2": 0.25}
    none = {"class_1": None, "probability_1": None, "class_2": None, "probability_2": None}
    assert rows_of(FOUND) == [first | {"error": None}, {"path": "/x/\\xff.png", **none, "error": "empty file"}]


def test_csv_is_read_back_by_the_standard_library() -> None:
    first, second = csv.DictReader(io.StringIO(as_csv(FOUND).decode()))
    assert (first["class_2"], float(first["probability_1"]), first["error"]) == ("a, b", 0.75, "")
    assert (second["class_1"], second["error"]) == ("", "empty file")


def test_json_has_names_and_no_nan() -> None:
    values = json.loads(as_json(FOUND), parse_constant=lambda name: pytest.fail(name))
    assert values["classes"] == ["a, b", "c"]
    assert values["predictions"][0]["top"][0] == {"class": "c", "probability": 0.75}
    assert values["predictions"][1] == {"path": "/x/\\xff.png", "error": "empty file"}


def test_parquet_has_the_same_rows() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(io.BytesIO(as_parquet(FOUND)))
    assert table.to_pylist() == rows_of(FOUND)
    assert str(table.schema.field("probability_1").type) == "double"


def test_parquet_without_pyarrow_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_files, "find_spec", lambda name: None if name == "pyarrow" else util.find_spec(name))
    with pytest.raises(RecipeError, match="pip install pyarrow, or write --csv"):
        as_parquet(FOUND)

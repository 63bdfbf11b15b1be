"""Files of predictions: CSV, JSON and parquet, one row an image, in the order in which they were named."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from fastaug.errors import RecipeError
from fastaug.inference.prediction import Predictions


def rows_of(found: Predictions) -> list[dict[str, Any]]:
    """A row for each image: path, class_1, probability_1, ..., class_k, probability_k, error.

    Of a damaged image they are None but for path and error; error is None of all others.
    """
    rows = []
    for row, path in enumerate(found.paths):
        values: dict[str, Any] = {"path": readable(path)}
        error = found.damaged.get(row)
        for place, (output, chance) in enumerate(zip(found.outputs[row], found.probabilities[row], strict=True), 1):
            values[f"class_{place}"] = None if error is not None else readable(found.classes[output])
            values[f"probability_{place}"] = None if error is not None else float(chance)
        rows.append(values | {"error": error})
    return rows


def readable(name: str | bytes) -> str:
    """A path or name as text that every file can hold: bytes that are no UTF-8 as escapes."""
    data = name if isinstance(name, bytes) else name.encode(errors="surrogateescape")
    return data.decode(errors="backslashreplace")


def as_csv(found: Predictions) -> bytes:
    """A line of names, then one an image."""
    rows, text = rows_of(found), io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_json(found: Predictions) -> bytes:
    """{"checkpoint", "classes", "predictions": [{"path", "top": [{"class", "probability"}]} or {"path", "error"}]}."""
    images: list[dict[str, Any]] = []
    for row, path in enumerate(found.paths):
        if row in found.damaged:
            images.append({"path": readable(path), "error": found.damaged[row]})
            continue
        ranked = zip(found.outputs[row], found.probabilities[row], strict=True)
        top = [{"class": readable(found.classes[output]), "probability": float(chance)} for output, chance in ranked]
        images.append({"path": readable(path), "top": top})
    names = [readable(name) for name in found.classes]
    values = {"checkpoint": str(found.checkpoint), "classes": names, "predictions": images}
    return (json.dumps(values, indent=1) + "\n").encode()


def as_parquet(found: Predictions) -> bytes:
    """The columns of `rows_of`; RecipeError without pyarrow."""
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    rows = rows_of(found)
    kinds = {"probability": pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds.get(name.partition("_")[0], pyarrow.string())) for name in rows[0]])
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file)
    return file.getvalue()


def check_parquet() -> None:
    """RecipeError without pyarrow."""
    if find_spec("pyarrow") is None:
        raise RecipeError(["--parquet: pyarrow is not installed; pip install pyarrow, or write --csv"])


FORMS: Mapping[str, Callable[[Predictions], bytes]] = MappingProxyType(
    {"csv": as_csv, "json": as_json, "parquet": as_parquet}
)

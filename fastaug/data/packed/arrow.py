"""Arrow files of Hugging Face datasets: a folder of save_to_disk, or the files of its cache; without that package.

The image column holds encoded bytes, alone or in a structure {bytes, path}; without bytes the file at the path is
read. It is the column that the set declares as Image, or data.input_key's; the label the one declared as ClassLabel,
whose names are the classes in their order, or data.target_key's. Ids follow the splits and files in the order of their
paths, for a split saved to disk in the order of its state.json: a row's id is its row in the split, counted on.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.packed.places import files_of, split_in
from fastaug.data.packed.records import (
    OWN_FILE,
    Container,
    Contents,
    Found,
    Keys,
    Record,
    number_or_text,
    one_of,
    refuse,
)
from fastaug.errors import DataError

AGAIN = "download or write it again"
LABELS = ("label", "labels", "class", "class_name", "target", "category")
_STATE, _SPLITS, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream that was closed


class Columns(NamedTuple):
    """The image and the label column of a set; `label` None without one; `names` of its classes, None: undeclared."""

    image: str
    label: str | None
    names: tuple[str, ...] | None


def pyarrow() -> Any:
    """The package; DataError without it."""
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        text = "data.root: hfds and parquet are read by pyarrow, which is not installed"
        raise DataError(f'{text}; run: pip install "fastaug[table]"') from error
    return pyarrow


def find(place: str) -> Found:
    """The Arrow files of a folder of save_to_disk, by its lists, or all of a folder but those named cache-*."""
    top = Path(place).expanduser().absolute()
    if (top / _SPLITS).is_file():
        splits = _list(top / _SPLITS, _json(top / _SPLITS), "splits")
        files = tuple(file for split in sorted(map(str, splits)) for file in _saved(top, split))
        return Found(top, files, (top / _SPLITS, *_beside(files)))
    if (top / _STATE).is_file():
        files = _saved(top, "")
        return Found(top, files, _beside(files))
    found = files_of(place, "hfds", lambda name: name.endswith(".arrow") and not name.startswith("cache-"))
    return replace(found, beside=_beside(found.files))


def _saved(top: Path, split: str) -> tuple[Container, ...]:
    """The files of one split that save_to_disk wrote; DataError where one is not there."""
    folder = top / split
    state = _json(folder / _STATE)
    entries = _list(folder / _STATE, state, "_data_files")
    if not all(isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in entries):
        raise DataError(f"data.root: {folder / _STATE}: an entry of _data_files names no file; {AGAIN}")
    names = [entry["filename"] for entry in entries]
    if state.get("_indices_data_files"):
        text = f"data.root: {folder} keeps its rows under other numbers (_indices_data_files)"
        raise DataError(f"{text}; save it again after dataset.flatten_indices()")
    refuse(folder, (name for name in names if not (folder / name).is_file()), "files that are not there", AGAIN)
    word = split_in(split) if split else ""
    if split and not word:
        raise DataError(
            f"data.root: {folder} is named after no split; rename it, and in {_SPLITS}, to train, val or test"
        )
    return tuple(Container(folder / name, f"{split}/{name}" if split else name, word) for name in names)


def _beside(files: Sequence[Container]) -> tuple[Path, ...]:
    folders = sorted({file.path.parent for file in files})
    return tuple(path for folder in folders for name in (_STATE, _INFO) if (path := folder / name).is_file())


def _list(path: Path, values: dict[str, Any], key: str) -> list[Any]:
    """The list under a key of the JSON file `path`, empty where there is none; DataError for anything else."""
    found = values.get(key, [])
    if not isinstance(found, list):
        raise DataError(f"data.root: {path}: {key} is no list, but {found!r:.100}; {AGAIN}")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
        raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data.root: {path} cannot be read ({error}); {AGAIN}") from error


def read(found: Found, keys: Keys) -> Contents:
    """The rows of all files; DataError for a truncated file, and where no column is of images."""
    arrow = pyarrow()
    records: list[Record] = []
    columns: Columns | None = None
    for number, file in enumerate(found.files):
        row = 0
        for batch, begin in batches(arrow, file.path):
            if columns is None:
                columns = columns_of(file.path, batch.schema, _described(file.path), keys)
            records += _rows(file, number, row, batch, begin, columns)
            row += batch.num_rows
    wanted = keys.label or f"a column declared as ClassLabel, or named {', '.join(LABELS)}"
    if columns is None:
        raise DataError(f"data.root: {found.files[0].path}: no rows in any file; {AGAIN}")
    return Contents(records, columns.names, wanted)


def batches(arrow: Any, path: Path) -> Iterator[tuple[Any, int]]:
    """The record batches of an Arrow file, of either form, not copied, and the address of its first byte."""
    try:
        with arrow.memory_map(str(path)) as source:
            size = source.size()
            tail = source.read_at(min(8, size), max(0, size - 8))
            begin = source.read_buffer().address if size else 0
            source.seek(0)
            if source.read(6) == b"ARROW1":
                reader = arrow.ipc.open_file(source)
                found = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                if tail != _END:
                    raise DataError(f"data.root: {path} has no end, as a stream of Arrow has: cut short; {AGAIN}")
                source.seek(0)
                found = iter(arrow.ipc.open_stream(source))
            for batch in found:
                batch.validate(full=True)  # offsets that lie outside
                yield batch, begin
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"data.root: {path}: truncated or no Arrow file ({error}); {AGAIN}") from error


def _described(path: Path) -> dict[str, Any]:
    """The features that dataset_info.json beside a file declares."""
    info = path.parent / _INFO
    features = _json(info).get("features") if info.is_file() else None
    return features if isinstance(features, dict) else {}


def columns_of(path: Path, schema: Any, described: dict[str, Any], keys: Keys) -> Columns:
    """Which columns hold images and labels; DataError where that is not clear."""
    features = described | declared(schema)
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    stored: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
    images = [name for name in stored if (name == keys.image if keys.image else kinds.get(name) == "Image")]
    if not keys.image and not images:
        images = [name for name in ("image", "img") if name in stored] or stored
    image = one_of(path, "column of images", images, "data.input_key", (f"{f.name} ({f.type})" for f in schema))
    if not keys.labelled:
        return Columns(image, None, None)
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    if keys.label:
        if keys.label not in schema.names:
            one_of(path, f"column {keys.label}", (), "data.target_key", schema.names)
        return Columns(image, keys.label, _names(features.get(keys.label)))
    labels = [name for name in LABELS if name in schema.names][:1] or labels
    label = one_of(path, "column of labels", labels, "data.target_key", schema.names) if labels else None
    return Columns(image, label, _names(features.get(label or "")))


def declared(schema: Any) -> dict[str, Any]:
    """The features that the metadata of a schema declare, as Hugging Face's writer puts them there."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _names(feature: Any) -> tuple[str, ...] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return None
    return tuple(names) if len(set(names)) == len(names) else None


def _holds_bytes(kind: Any) -> bool:
    types = pyarrow().types
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _rows(file: Container, number: int, first: int, batch: Any, begin: int, columns: Columns) -> Iterator[Record]:
    """The records of a batch whose first row is row `first` of its file."""
    column = batch.column(columns.image)
    of_struct = pyarrow().types.is_struct(column.type)
    content = column.field("bytes") if of_struct else column
    has_path = of_struct and column.type.get_field_index("path") >= 0
    paths = column.field("path").to_pylist() if has_path else [None] * len(column)
    offsets, lengths = stretches(content, begin)
    size = file.path.stat().st_size
    if len(offsets) and (offsets.min() < 0 or int((offsets + lengths).max()) > size):
        text = f"data.root: {file.path} is compressed inside, and no image in it can be read alone"
        raise DataError(
            f"{text}; save it with save_to_disk of datasets, or as parquet and name parquet:{file.path.parent}"
        )
    labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(column)
    empty = content.is_null().to_pylist()
    for row, (path, label) in enumerate(zip(paths, labels, strict=True)):
        name = f"{file.name}:{first + row}"
        place = (number, int(offsets[row]), int(lengths[row]))
        if empty[row] and path:
            name, place = os.path.join(os.path.dirname(file.name), path), (OWN_FILE, 0, 0)
        yield Record(name, _class_of(f"{file.path}, row {first + row}", label, columns.names), file.split, *place)


def stretches(array: Any, begin: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where the values of an array of byte strings lie, from the address `begin`, and their lengths; 0 for none."""
    _, ends, values = array.buffers()
    wide = pyarrow().types.is_large_binary(array.type)
    kind = np.dtype(np.int64 if wide else np.int32)
    if not len(array):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    edges = np.frombuffer(ends, kind, len(array) + 1, array.offset * kind.itemsize).astype(np.int64)
    lengths = np.diff(edges)
    start = values.address - begin if values is not None and values.size else 0
    return np.where(lengths > 0, start + edges[:-1], 0), lengths


def _class_of(where: str, label: Any, names: tuple[str, ...] | None) -> str | None:
    """The name of a label; -1 of a ClassLabel says that there is none."""
    if names is not None and isinstance(label, int):
        if not -1 <= label < len(names):
            raise DataError(f"data.root: {where} has label {label}, and {len(names)} classes have names; {AGAIN}")
        return None if label == -1 else names[label]
    try:
        return number_or_text(label)
    except ValueError as error:
        raise DataError(f"data.root: {where}: its label {error}; name another column in data.target_key") from error

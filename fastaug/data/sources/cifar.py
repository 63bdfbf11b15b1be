"""Readers of CIFAR-10 and CIFAR-100 (Krizhevsky 2009), Python and binary versions.

The formats are those of cs.toronto.edu/~kriz/cifar.html. A row is 3,072 bytes: 32x32 red, then green, then blue.
CIFAR-100 is read with its 100 fine labels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.data.sources.array_files import AGAIN, ArraySet, Files, Layout, Part, checked, class_folders
from fastaug.data.sources.inert_pickle import read_table, text_of, uint8_rows
from fastaug.errors import DataError

_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


def _images(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _joined(parts: list[Part]) -> Part:
    return Part(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


def _list(table: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> list[Any]:
    found = table.get(key)
    if not isinstance(found, list) or not all(isinstance(entry, kind) for entry in found):
        raise DataError(f"{where}: no list {key!r} in it (keys: {', '.join(table)}); replace the file by the original")
    return found


def _python_part(files: Files, name: str, key: str, classes: int) -> Part:
    where = files.where(name)
    table = read_table(files.contents[name], where)
    labels = _list(table, key, int, where)
    rows = uint8_rows(table.get("data"), where)
    if rows.shape[1] != _PIXELS:
        raise DataError(f"{where}: rows of {rows.shape[1]} bytes, not {_PIXELS}; replace the file by the original")
    return checked(_images(rows), labels, classes, where)


def _python(files: Files, meta: str, names_key: str, label_key: str, train: tuple[str, ...], test: str) -> ArraySet:
    where = files.where(meta)
    names = _list(read_table(files.contents[meta], where), names_key, (str, bytes), where)
    classes = class_folders([text_of(name) for name in names], where)
    parts = [_python_part(files, name, label_key, len(classes)) for name in (*train, test)]
    return ArraySet(classes, _joined(parts[:-1]), parts[-1])


def _binary_part(files: Files, name: str, label_bytes: int, classes: int) -> Part:
    """Each record: the label (CIFAR-100: coarse, then fine), then the pixels."""
    raw, size = files.contents[name], label_bytes + _PIXELS
    if len(raw) % size:
        raise DataError(f"{files.where(name)}: {len(raw)} bytes are no whole number of {size}-byte records; {AGAIN}")
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, size)
    labels = records[:, label_bytes - 1].tolist()
    return checked(_images(records[:, label_bytes:]), labels, classes, files.where(name))


def _binary(files: Files, meta: str, label_bytes: int, train: tuple[str, ...], test: str) -> ArraySet:
    names = files.contents[meta].decode("latin1").split()
    classes = class_folders(names, files.where(meta))
    parts = [_binary_part(files, name, label_bytes, len(classes)) for name in (*train, test)]
    return ArraySet(classes, _joined(parts[:-1]), parts[-1])


_BIN = tuple(f"{name}.bin" for name in _BATCHES)

CIFAR10 = (
    Layout(
        files=("batches.meta", *_BATCHES, "test_batch"),
        folders=("cifar-10-batches-py",),
        archive="cifar-10-python.tar.gz",
        parse=lambda files: _python(files, "batches.meta", "label_names", "labels", _BATCHES, "test_batch"),
    ),
    Layout(
        files=("batches.meta.txt", *_BIN, "test_batch.bin"),
        folders=("cifar-10-batches-bin",),
        archive="cifar-10-binary.tar.gz",
        parse=lambda files: _binary(files, "batches.meta.txt", 1, _BIN, "test_batch.bin"),
    ),
)
CIFAR100 = (
    Layout(
        files=("meta", "train", "test"),
        folders=("cifar-100-python",),
        archive="cifar-100-python.tar.gz",
        parse=lambda files: _python(files, "meta", "fine_label_names", "fine_labels", ("train",), "test"),
    ),
    Layout(
        files=("fine_label_names.txt", "train.bin", "test.bin"),
        folders=("cifar-100-binary",),
        archive="cifar-100-binary.tar.gz",
        parse=lambda files: _binary(files, "fine_label_names.txt", 2, ("train.bin",), "test.bin"),
    ),
)

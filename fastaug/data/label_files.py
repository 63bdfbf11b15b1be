"""Files that replace labels of training images: distortions to study, or corrections; and numbers of classes.

A file has a line `id-or-path<TAB>class` for every label replaced; the path is relative to the data root, the class is
the name of its folder. Blank lines do not count, nor do those that begin with '#', unless a tab and a class follow.
Lines end with a line feed alone: a file whose path holds one is named by its id.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastaug.atomic_files import open_regular
from fastaug.data.class_names import shown, some
from fastaug.data.index import Index
from fastaug.data.path_table import Places
from fastaug.data.splits import BOM, Splits, ids_of, stretches
from fastaug.errors import DataError

Ids = npt.NDArray[np.int64]
MOST_WEIGHT = 1e30  # as in recipes


def with_labels(index: Index, splits: Splits, file: Path) -> Index:
    """`index` with the labels that `file` names. DataError for a line that is wrong or about an image not in train."""
    classes = {os.fsencode(name): label for label, name in enumerate(index.classes)}
    train = np.zeros(len(index.labels), dtype=bool)
    train[splits.train] = True
    labels, seen = index.labels.copy(), np.zeros(len(train), dtype=bool)
    try:
        for number, line, (_, tab, label), sample in _rows(file, classes, index):
            if not line.strip() or (line.startswith(b"#") and not (tab and label in classes)):
                continue
            where = f"data.labels: {file}, line {number}: "
            if not tab or label not in classes:
                raise DataError(f"{where}{os.fsdecode(line)!r} {_unlabelled(tab and label, index.classes)}")
            if sample < 0 or not train[sample] or seen[sample]:
                reason = "is not about an image of the training split"
                if sample < 0:
                    reason = "names no image of these data by its id, or its path relative to data.root"
                elif seen[sample]:
                    reason = "names an image twice"
                raise DataError(f"{where}{os.fsdecode(line)!r} {reason}; correct or remove the line")
            seen[sample] = True
            labels[sample] = classes[label]
    except (OSError, ValueError) as error:
        raise DataError(f"data.labels: {file} cannot be read ({error}); repair or remove it") from error
    return replace(index, labels=labels)


def _unlabelled(label: bytes, classes: Sequence[str]) -> str:
    """What is wrong with a line whose `label`, b"" where none stands, is none of the classes, and the remedy."""
    if not label:
        return "must be an id or path, a tab and the name of a class; correct or remove the line"
    return (
        f"names the class {shown(os.fsdecode(label))}, and there is none of that name; the {len(classes)} classes are "
        f"{some(classes)}; correct the line, or name the file of labels of these images"
    )


def _rows(
    file: Path, classes: Mapping[bytes, int], index: Index
) -> Iterator[tuple[int, bytes, tuple[bytes, bytes, bytes], int]]:
    """Number, text and parts of each line of a file, see `split_line`, and the image that it names, -1 where none."""
    places = Places(index.paths)
    for first, lines in stretches(file):
        parts = [split_line(line, classes) for line in lines]
        samples = ids_of([name for name, _, _ in parts], places, len(index))
        yield from zip(count(first), lines, parts, samples, strict=False)


def split_line(line: bytes, classes: Mapping[bytes, int]) -> tuple[bytes, bytes, bytes]:
    """What stands before a line's last tab, the tab, and the class behind it; blanks at its end only if it has them."""
    name, tab, label = line.removesuffix(b"\r").rpartition(b"\t")
    return name, tab, label if label in classes else label.rstrip()


def label_lines(ids: Ids, names: Sequence[str]) -> bytes:
    """The text of a file that gives image ids[i] the class names[i]. DataError for a name that no line can hold."""
    if broken := sorted({name for name in names if re.search(r"[\n\t]", name)}):
        raise DataError(f"class {broken[0]!r}: a label file cannot hold line feeds and tabs; rename the folder")
    return b"".join(b"%d\t%s\n" % (i, os.fsencode(name)) for i, name in zip(ids, names, strict=True))


def read_class_numbers(file: Path, classes: Sequence[str], key: str) -> npt.NDArray[np.float64]:
    """The number [C] >= 0 of each class in a file of lines `class<TAB>number`; DataError, naming `key`, for others.

    Blank lines and remarks, which begin with '#', do not count.
    """
    try:
        with open_regular(file) as opened:
            lines = opened.read().removeprefix(BOM).split(b"\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{key}: {file} cannot be read ({error}); repair it or name another") from error
    labels, found = {os.fsencode(name): label for label, name in enumerate(classes)}, {}
    for number, line in enumerate(lines, start=1):
        name, _, text = line.removesuffix(b"\r").rpartition(b"\t")
        if not line.strip() or (line.startswith(b"#") and name not in labels):
            continue
        value = _number(text)
        if name not in labels or value is None or labels[name] in found:
            reason = "names a class twice" if labels.get(name) in found else "must be a class, a tab and a number >= 0"
            raise DataError(f"{key}: {file}, line {number}: {os.fsdecode(line)!r} {reason}; correct the line")
        found[labels[name]] = value
    if missing := [name for label, name in enumerate(classes) if label not in found]:
        raise DataError(f"{key}: {file} has no line for {len(missing)} classes: {some(missing)}; add them")
    return np.array([found[label] for label in range(len(classes))])


def _number(text: bytes) -> float | None:
    """A finite number >= 0; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= MOST_WEIGHT else None

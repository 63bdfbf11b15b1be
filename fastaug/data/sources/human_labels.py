"""Published labels by people for CIFAR: CIFAR-N (Wei et al., ICLR 2022), files CIFAR-10_human.pt, CIFAR-100_human.pt.

Columns of CIFAR-10: aggre_label (majority of three), worse_label (a wrong one of the three, if any), random_label1,
random_label2, random_label3; of CIFAR-100: noisy_label. Row i is training image i of the published set; clean_label
repeats its own labels.
"""

import os
from pathlib import Path

import numpy as np

from fastaug.data.distortion import Ids
from fastaug.data.index import Index
from fastaug.data.sources.array_files import read_folder
from fastaug.data.sources.inert_pickle import integer_column, read_torch_table
from fastaug.errors import DataError

CLEAN = "clean_label"


def human_labels(file: Path, column: str, index: Index, train: Ids) -> tuple[Ids, Ids]:
    """The images among `train` whose label in `column` is another one than their folder's, and that label: ([m], [m]).

    `index` is of a set that arrays.py wrote: a file's name is its row. DataError for a column that is not there, labels
    that are no classes, and a file about other images.
    """
    table = read_torch_table(read_folder(file.parent, (file.name,)).contents[file.name], str(file))
    if column not in table:
        raise DataError(f"{file}: has no column {column!r}; --column can be one of {', '.join(table)}")
    given, rows = integer_column(table[column], f"{file}: {column!r}"), rows_of(index, train)
    outside = np.flatnonzero((given < 0) | (given >= len(index.classes)))
    if len(outside):
        text = f"{file}: {column!r} has label {given[outside[0]]} in row {outside[0]}"
        raise DataError(f"{text}, but data.root has {len(index.classes)} classes; name the set that it is about")
    clean = integer_column(table[CLEAN], f"{file}: {CLEAN!r}") if CLEAN in table else None
    if len(rows) and rows.max() >= len(given):
        raise DataError(f"{file}: has {len(given)} labels, data.root training image {rows.max()}: it is of another set")
    if clean is not None and (len(clean) != len(given) or (clean[rows] != index.labels[train]).any()):
        raise DataError(f"{file}: {CLEAN!r} is not what data.root says: it is of another set, or in another order")
    wrong = given[rows] != index.labels[train]
    return train[wrong], given[rows][wrong]


def rows_of(index: Index, train: Ids) -> Ids:
    """The row in the published set of each image, by its file's name; DataError for a set of another form."""
    stems = [os.path.splitext(os.path.basename(index.paths[i]))[0] for i in train.tolist()]
    if not all(stem.isdigit() for stem in stems) or len(set(stems)) < len(stems):
        raise DataError(
            "data.root: files are not named by their row; labels by people need cifar10:PATH or cifar100:PATH"
        )
    return np.array(list(map(int, stems)), dtype=np.int64)

"""What a network takes images for: its predictions and features of a split, and the matrix of its confusions.

A matrix is kept as CSV: a first line of class names, then a line for each true class, its name and how many of its
images are taken for each class.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.data.class_names import some
from fastaug.errors import DataError

CORNER = "true class"
Matrix = npt.NDArray[np.float64]


class Seen(NamedTuple):
    """What a network makes of N images, on the CPU: true and predicted class [N], input of its last layer [N, D]."""

    labels: Tensor
    predicted: Tensor
    features: Tensor


@torch.no_grad()
def look(network: nn.Module, batches: Iterable[Batch], augment: BatchAugment, classes: int) -> Seen:
    """Passes all images through the network, as they are evaluated; features are those that its classifier is given.

    A network without a classifier of its own (timm's `get_classifier`) has its outputs for features.
    """
    given: list[Tensor] = []
    classifier: Any = getattr(network, "get_classifier", nn.Identity)()
    handle = classifier.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    found: list[tuple[Tensor, ...]] = []
    network.eval()
    try:
        for batch in batches:
            if len(batch.ids):  # else all of its images are damaged
                given.clear()
                logits = network(augment.evaluation(batch))[:, :classes]  # without the "other" class
                features = given[0] if given else logits
                found.append((batch.labels.cpu(), logits.argmax(1).cpu(), features.flatten(1).float().cpu()))
    finally:
        handle.remove()
    if not found:
        raise DataError("no image of the split could be decoded; choose another --split")
    return Seen(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def confusion_matrix(seen: Seen, classes: int) -> Matrix:
    """Images of class (row) taken for class (column): [C, C]."""
    pairs = seen.labels.numpy() * classes + seen.predicted.numpy()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.float64)


def confusion_csv(matrix: Matrix, names: Sequence[str]) -> bytes:
    """The text of a file; bytes of a folder's name that are no UTF-8 stand as escapes."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([CORNER, *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.astype(int).tolist(), strict=True))
    return out.getvalue().encode(errors="backslashreplace")


def read_confusion(file: Path, names: Sequence[str]) -> Matrix:
    """The matrix in a file, in the order of the classes `names`; DataError where it is not of them."""
    try:
        head, *rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
        known = [row[0] for row in rows]
        matrix = np.array([[float(value) for value in row[1:]] for row in rows])
    except (OSError, ValueError, LookupError, csv.Error) as error:
        text = f"{file}: is no confusion matrix ({error})"
        raise DataError(f"{text}; name a run folder, or confusion.csv of tools/show_features.py") from error
    if head[:1] != [CORNER] or head[1:] != known or matrix.shape != (len(known), len(known)):
        raise DataError(f"{file}: rows and columns are not the same classes; let tools/show_features.py write it")
    if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
        raise DataError(f"{file}: has a count below 0, or that is no number; let tools/show_features.py write it")
    return in_order(matrix, known, [name.encode(errors="backslashreplace").decode() for name in names], str(file))


def in_order(matrix: Matrix, known: Sequence[str], names: Sequence[str], where: str) -> Matrix:
    """The rows and columns of the classes `names`; DataError, naming `where`, for one that the matrix does not know."""
    place = {name: row for row, name in enumerate(known)}
    if unknown := [name for name in names if name not in place]:
        raise DataError(f"{where}: knows no class {some(unknown)}; it is of other data: choose another one")
    rows = [place[name] for name in names]
    return matrix[np.ix_(rows, rows)]

"""Labels flipped on purpose: wrong for certain, they tell how well statistics of single images find wrong labels."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError
from fastaug.seeding import Key, Stream, permuted, uniform

Ids = npt.NDArray[np.int64]


class Planted(NamedTuple):
    """Images `ids` [m] whose label was flipped on purpose, and the labels [m] that they were given."""

    ids: Ids
    given: Ids


def planted_labels(
    labels: Ids, ids: Ids, classes: int, *, share: float, seed: int, confusion: npt.NDArray[np.float64] | None = None
) -> tuple[Ids, Planted]:
    """The labels [N] with a keyed choice of round(share n), one at least, of images `ids` [n] flipped, and which.

    Without `confusion` every other class is as likely. With it, [C, C] >= 0, entry (a, b) the number of images of class
    a labelled b, both the image's class and its new one follow it; its diagonal does not count. DataError where there
    is no other class.
    """
    if classes < 2:
        raise DataError("run.plant: there is no other class to flip a label to; set it to 0")
    key, count = Key(seed, 0, Stream.PLANT), min(len(ids), max(1, round(share * len(ids))))
    if confusion is None:
        chosen = np.sort(permuted(key, ids)[:count])
    else:
        confusion = confusion * (1 - np.eye(classes))
        sizes = np.bincount(labels[ids], minlength=classes)
        chosen = np.sort(_chosen(key, ids, (confusion.sum(1) / np.maximum(sizes, 1))[labels[ids]], count))
    given, draw = labels[chosen], uniform(key._replace(epoch=1), chosen, 1)[:, 0]
    flipped = labels.copy()
    flipped[chosen] = _any_other(given, draw, classes) if confusion is None else _confused(given, draw, confusion)
    return flipped, Planted(chosen, given)


def _any_other(given: Ids, draw: npt.NDArray[np.float64], classes: int) -> Ids:
    """A class other than each of `given` [m], by `draw` [m] in [0, 1)."""
    found = np.minimum((draw * (classes - 1)).astype(np.int64), classes - 2)
    return found + (found >= given)


def _confused(given: Ids, draw: npt.NDArray[np.float64], confusion: npt.NDArray[np.float64]) -> Ids:
    """What each of `given` [m] is taken for, by `draw` [m] in [0, 1); the diagonal of `confusion` is 0."""
    found = given.copy()
    for label in np.unique(given):
        rows, others = given == label, np.flatnonzero(confusion[label])
        ends = np.cumsum(confusion[label, others]) / confusion[label].sum()
        found[rows] = others[np.minimum(np.searchsorted(ends, draw[rows], side="right"), len(others) - 1)]
    return found


def _chosen(key: Key, ids: Ids, chance: npt.NDArray[np.float64], count: int) -> Ids:
    """`count` of `ids` [n], each with a chance in proportion to `chance` [n], fewer where that is 0 for most.

    Efraimidis and Spirakis 2006: the largest u^(1/w), each u a function of the image's id alone.
    """
    draw = uniform(key, ids, 1)[:, 0]
    worth = np.where(chance > 0, np.log(np.maximum(draw, 1e-300)) / np.where(chance > 0, chance, 1), -np.inf)
    order = np.argsort(-worth, kind="stable")
    return ids[order[: min(count, int((chance > 0).sum()))]]

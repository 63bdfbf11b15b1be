"""Labels flipped on purpose: wrong for certain, they tell how well statistics of single images find wrong labels."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
    a labelled b, both the image's class and its new one follow it; its diagonal does not count.
    """
    key, others = Key(seed, 0, Stream.PLANT), 1 - np.eye(classes)
    sizes = np.bincount(labels[ids], minlength=classes)
    weight = others * (sizes[:, None] if confusion is None or not (confusion * others).any() else confusion)
    of_class = weight.sum(1)
    count = min(len(ids), max(1, round(share * len(ids))))
    chosen = np.sort(_chosen(key, ids, (of_class / np.maximum(sizes, 1))[labels[ids]], count))
    draw = uniform(key._replace(epoch=1), chosen, 1)[:, 0]
    given = labels[chosen]
    flipped = labels.copy()
    for label in np.unique(given):
        rows = given == label
        ends = np.cumsum(weight[label] / of_class[label])
        flipped[chosen[rows]] = np.minimum(np.searchsorted(ends, draw[rows], side="right"), classes - 1)
    return flipped, Planted(chosen, given)


def _chosen(key: Key, ids: Ids, chance: npt.NDArray[np.float64], count: int) -> Ids:
    """`count` of `ids` [n], each with a chance in proportion to `chance` [n], fewer where that is 0 for most.

    Efraimidis and Spirakis 2006: the largest u^(1/w), each u a function of the image's id alone.
    """
    if (chance == chance[:1]).all():
        return permuted(key, ids)[:count]
    draw = uniform(key, ids, 1)[:, 0]
    worth = np.where(chance > 0, np.log(np.maximum(draw, 1e-300)) / np.where(chance > 0, chance, 1), -np.inf)
    order = np.argsort(-worth, kind="stable")
    return ids[order[: min(count, int((chance > 0).sum()))]]

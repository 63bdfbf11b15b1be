"""Class-balanced and square-root sampling: which images an epoch holds where classes are drawn unevenly.

Keyed draws with replacement, a pure function of (seed, epoch): every class walks through keyed permutations of its
images, one after the other and over the epochs, so that none is repeated before all of its class were drawn.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError
from fastaug.seeding import Key, Stream, copies_of, permuted

Ids = npt.NDArray[np.int64]
Sampling = Literal["natural", "balanced", "sqrt"]
MOST_COPIES = 2**16  # of an image in an epoch, that draws can tell apart


def class_shares(counts: Ids, sampling: Sampling) -> npt.NDArray[np.float64]:
    """Share [C] of the images of an epoch that each class has, from its number of training images [C].

    natural: n_c / sum n, balanced: 1 / C, sqrt: sqrt(n_c) / sum sqrt(n) (Mahajan et al. 2018, arXiv:1805.00932).
    """
    power = {"natural": 1.0, "balanced": 0.0, "sqrt": 0.5}[sampling]
    weights = np.where(counts > 0, counts.astype(np.float64) ** power, 0)
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


@dataclass(frozen=True, eq=False)
class ClassDraws:
    """The images of each epoch where a class has `shares` [C] of them, whatever its number of images.

    `ids` [N] are the training images, `labels` [N] their classes, each of which has one or more; an epoch has N draws.
    """

    ids: Ids
    labels: Ids
    shares: npt.NDArray[np.float64]
    seed: int

    def __post_init__(self) -> None:
        most = int((len(self.ids) * self.shares / np.bincount(self.labels, minlength=len(self.shares))).max()) + 2
        if most > MOST_COPIES:
            raise DataError(
                f"data.sampling: an image of the smallest class would be drawn {most} times an epoch, more than "
                f"{MOST_COPIES}; choose sqrt or natural, or leave the class out"
            )

    def drawn_before(self, epoch: int) -> Ids:
        """Images [C] of each class that are drawn in all epochs before `epoch`; they sum to epoch * N.

        Each is within 1 of its share: bounds between the classes are rounded, not the classes.
        """
        bounds = np.floor(epoch * len(self.ids) * np.cumsum(self.shares) + 0.5)
        bounds[-1] = epoch * len(self.ids)
        return np.diff(bounds, prepend=0).astype(np.int64)

    def epoch(self, epoch: int) -> Ids:
        """The draws [N] of one epoch, ids with their copies (see `seeding.copies_of`), class by class.

        The first time that an epoch has an image is its copy 0, and so on, so that each looks different.
        """
        first, last = self.drawn_before(epoch), self.drawn_before(epoch + 1)
        members = np.split(self.ids[np.argsort(self.labels, kind="stable")], self._ends()[:-1])
        ids = np.concatenate([self._walk(own, *ends) for own, *ends in zip(members, first, last, strict=True)])
        return copies_of(ids, earlier_of(ids))

    def _ends(self) -> Ids:
        return np.cumsum(np.bincount(self.labels, minlength=len(self.shares)))

    def _walk(self, members: Ids, first: int, last: int) -> Ids:
        """Positions [first, last) of a class's walk: pass p through its images has the order of key (seed, p)."""
        size = len(members)
        passes = range(first // size, -(-last // size))
        walk = [permuted(Key(self.seed, turn, Stream.SAMPLING), members) for turn in passes]
        begin = passes.start * size
        return np.concatenate([members[:0], *walk])[first - begin : last - begin]


def earlier_of(ids: Ids) -> Ids:
    """How many of the ids [N] before each one are equal to it: [N]."""
    order = np.argsort(ids, kind="stable")
    arranged = ids[order]
    starts = np.flatnonzero(np.diff(arranged, prepend=arranged[:1] - 1))
    within = np.arange(len(ids)) - np.repeat(starts, np.diff(starts, append=len(ids)))
    earlier = np.empty_like(ids)
    earlier[order] = within
    return earlier

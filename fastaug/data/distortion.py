"""Training images made harder on purpose: fewer of them, uneven classes, wrong labels; what was drawn is known.

The order is that of AutoDO (Gudovskiy et al., CVPR 2021): the clean meta split is taken before (splits.py), then

1. subsample: round(SR n) of the n training images are kept;
2. imbalance: the classes from C/2 on (rounded down) are pooled and floor(L / IR) of their images kept, L being the
   images of the first half: the rare classes share them as it comes, one may get none; IR = 1 keeps all;
3. noise: a share NR of what is left gets a wrong label, by one of `KINDS`. Nothing but training images changes.

Every draw is keyed by (seed, id): the images kept at a stronger setting are among those of a weaker one, and so are the
images with a wrong label at the same set of images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.seeding import Key, Stream, integers, permuted, uniform

Ids = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distortion:
    """What is done to the training images. ValueError names a number out of range."""

    subsample: float = 1.0  # SR, share that is kept
    imbalance: float = 1.0  # IR, images of the first half of the classes to one of the second
    noise: float = 0.0  # NR, share with a wrong label
    kind: str = "uniform"  # of KINDS
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.subsample <= 1:
            raise ValueError(f"subsample: the share of images kept must be in (0, 1], found {self.subsample}")
        if not 1 <= self.imbalance < float("inf"):
            raise ValueError(f"imbalance: must be a number of 1 or more, found {self.imbalance}")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise: the share of wrong labels must be in [0, 1], found {self.noise}")
        if self.kind not in KINDS:
            raise ValueError(f"kind: must be one of {', '.join(KINDS)}, found {self.kind!r}")


class Distorted(NamedTuple):
    """The training images that are kept (sorted ids), and wrong labels: image ids[i] gets labels[i]."""

    train: Ids
    ids: Ids
    labels: Ids


def distorted(
    labels: Ids, train: Ids, classes: int, settings: Distortion, confusion: Matrix | None = None
) -> Distorted:
    """What `settings` make of the images `train`, whose true labels are labels[id].

    `confusion` [C, C]: images of class (row) taken for class (column), for noise of that kind. ValueError when there is
    too little to draw from.
    """
    kept = subsampled(train, settings)
    kept = np.sort(made_uneven(labels, kept, classes, settings))
    ids, wrong = noisy_labels(labels, kept, classes, settings, confusion)
    return Distorted(kept, ids, wrong)


def subsampled(train: Ids, settings: Distortion) -> Ids:
    """round(SR n) of the n images, at least one."""
    if settings.subsample == 1:
        return train
    keep = max(1, round(settings.subsample * len(train)))
    return permuted(Key(settings.seed, 0, Stream.DISTORTION), train)[:keep]


def made_uneven(labels: Ids, train: Ids, classes: int, settings: Distortion) -> Ids:
    """The images of the first half of the classes, and floor(L / IR) of the others; as many as there are if fewer."""
    if settings.imbalance == 1:
        return train
    rare = labels[train] >= classes // 2
    common = train[~rare]
    keep = floor(len(common) / Fraction(str(settings.imbalance)))
    return np.concatenate([common, permuted(Key(settings.seed, 1, Stream.DISTORTION), train[rare])[:keep]])


# ---- wrong labels ----


def noisy_labels(
    labels: Ids, ids: Ids, classes: int, settings: Distortion, confusion: Matrix | None = None
) -> tuple[Ids, Ids]:
    """The images among `ids` whose label becomes wrong, sorted, and their new labels: ([m], [m]).

    m = round(NR n), but for the kinds that say otherwise.
    """
    if not settings.noise or not len(ids):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if classes < 2:
        raise ValueError(f"noise: wrong labels need two classes, found {classes}")
    draw = _DRAWS.get(settings.kind)
    if draw is None:
        return _by_confusion(labels, ids, classes, settings, confusion)
    return draw(labels, ids, classes, settings)


def _key(settings: Distortion, number: int) -> Key:
    return Key(settings.seed, number, Stream.NOISE)


def _chosen(ids: Ids, settings: Distortion) -> Ids:
    return np.sort(permuted(_key(settings, 0), ids)[: round(settings.noise * len(ids))])


def _to_others(labels: Ids, chosen: Ids, classes: int, settings: Distortion) -> Ids:
    """A class for each image, uniform among those that are not its own."""
    return (labels[chosen] + 1 + integers(_key(settings, 1), chosen, classes - 1)[:, 0]) % classes


def _uniform(labels: Ids, ids: Ids, classes: int, settings: Distortion) -> tuple[Ids, Ids]:
    chosen = _chosen(ids, settings)
    return chosen, _to_others(labels, chosen, classes, settings)


def _uniform_all(labels: Ids, ids: Ids, classes: int, settings: Distortion) -> tuple[Ids, Ids]:
    """Uniform among all classes, as AutoDO's code draws: 1 in C keeps its label by chance, and is not listed."""
    chosen = _chosen(ids, settings)
    drawn = integers(_key(settings, 2), chosen, classes)[:, 0]
    wrong = drawn != labels[chosen]
    return chosen[wrong], drawn[wrong]


def _pairwise(labels: Ids, ids: Ids, classes: int, settings: Distortion) -> tuple[Ids, Ids]:
    chosen = _chosen(ids, settings)
    return chosen, (labels[chosen] + 1) % classes


def class_rates(classes: int, settings: Distortion) -> Matrix:
    """Shares of wrong labels by class [C]: evenly spread around NR, over [0, 2 NR] up to NR = 1/2, in a keyed order."""
    spread = min(settings.noise, 1 - settings.noise)
    place = np.empty(classes)
    place[permuted(_key(settings, 3), np.arange(classes))] = np.linspace(-1, 1, classes)
    return settings.noise + spread * place


def _classwise(labels: Ids, ids: Ids, classes: int, settings: Distortion) -> tuple[Ids, Ids]:
    """Uniform among the other classes, at a rate of each class's own: round(rate n) of its n images."""
    order, rates = permuted(_key(settings, 0), ids), class_rates(classes, settings)
    members = [order[labels[order] == label] for label in range(classes)]
    taken = [own[: round(rate * len(own))] for own, rate in zip(members, rates.tolist(), strict=True)]
    chosen = np.sort(np.concatenate(taken))
    return chosen, _to_others(labels, chosen, classes, settings)


def _by_confusion(
    labels: Ids, ids: Ids, classes: int, settings: Distortion, confusion: Matrix | None
) -> tuple[Ids, Ids]:
    """As a network errs: images of classes that it mistakes more often are taken sooner, for what it takes them for.

    Exactly round(NR n) images, without replacement, by weight (Efraimidis and Spirakis 2006).
    """
    if confusion is None or confusion.shape != (classes, classes):
        found = "none" if confusion is None else list(confusion.shape)
        raise ValueError(f"confusion: noise of this kind needs a matrix of {classes} x {classes} counts, found {found}")
    errors = np.where(np.eye(classes, dtype=bool), 0.0, confusion)
    rates = errors.sum(1) / np.maximum(confusion.sum(1), 1)
    able, wanted = ids[rates[labels[ids]] > 0], round(settings.noise * len(ids))
    if len(able) < wanted:
        text = f"confusion: {wanted} wrong labels of {len(ids)} are asked for, but only {len(able)} images are of a"
        raise ValueError(f"{text} class that is ever mistaken; lower noise, or take the confusion of a weaker network")
    waits = -np.log1p(-uniform(_key(settings, 4), able, 1)[:, 0]) / rates[labels[able]]
    chosen = np.sort(able[np.argsort(waits, kind="stable")[:wanted]])
    draws, drawn = uniform(_key(settings, 5), chosen, 1)[:, 0], np.empty(len(chosen), np.int64)
    for label in np.unique(labels[chosen]):
        own = labels[chosen] == label
        bounds = errors[label].cumsum()
        drawn[own] = np.searchsorted(bounds / bounds[-1], draws[own], side="right")
    return chosen, drawn


_DRAWS: dict[str, Callable[[Ids, Ids, int, Distortion], tuple[Ids, Ids]]] = {
    "uniform": _uniform,
    "uniform_all": _uniform_all,
    "pairwise": _pairwise,
    "classwise": _classwise,
}
KINDS = (*_DRAWS, "confusion")

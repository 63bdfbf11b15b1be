"""The transformation under which the images of one split look like those of another, to a trained network.

Of the images of a class, the mean of each feature is the same on both sides once one side is transformed as the other
was. The amounts that bring these means closest are found by least squares. A transformation that lowers the loss of the
other side would be found without this one's images, and beside the truth: what a network recognises best is not what it
was trained on, and it recognises images some degrees beside as well.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastaug.batch import Batch
from fastaug.seeding import Key, Stream, permuted, uniform

Ids = npt.NDArray[np.int64]

IMAGES = 512  # of each side
OF_A_CLASS = 32  # images at least, where there are so many: means of fewer are noise
STARTS, REFINED = 12, 3  # places tried for each amount, and those of all from where the search goes on
WIDE = 0.3  # their standard deviation, as a share of the reach
ROUNDS, TRIES = 12, 6  # of the search, and of one of its steps, each shorter than the last
STEP = 0.01  # share of the reach over which differences are taken
FAR = 0.95  # largest share of the reach that is found
FEWEST = 2  # images of a class on each side: one has no spread
UNSEEN = 1e-4  # of the error: what leaving an amount at 0 adds where it changes nothing that counts
STILL = 1e-3  # of the features' mean variance: below, a feature says nothing, and would be all that counts


class Side(NamedTuple):
    """Images [N,C,S,S] in [0, 1] of one split, cut as evaluation images are, and their labels [N]."""

    images: Tensor
    labels: Tensor


def compared_ids(labels: Ids, one: Ids, other: Ids, seed: int) -> tuple[Ids, Ids]:
    """Ids of both sides to compare: as many on both of the same classes, those with the most images in `other` first.

    IMAGES on each side or as many as there are; none without a class of FEWEST images on both.
    """
    counts = np.bincount(labels[other])
    share = max(OF_A_CLASS, IMAGES // max(1, int(np.count_nonzero(counts))))
    sides: tuple[list[Ids], list[Ids]] = ([], [])
    for label in np.argsort(-counts, kind="stable"):
        found = [permuted(Key(seed, 0, Stream.MATCH), ids[labels[ids] == label]) for ids in (one, other)]
        least = min(share, *map(len, found))
        if least >= FEWEST and sum(map(len, sides[1])) < IMAGES:
            sides[0].append(found[0][:least])
            sides[1].append(found[1][:least])
    first, second = (np.sort(np.concatenate(side)) if side else other[:0] for side in sides)
    return first, second


def side_of(batches: Iterable[Batch], floats: Callable[[Batch], Tensor]) -> Side | None:
    """All images of `batches`, None where all are damaged; `floats` makes images [n,C,S,S] in [0, 1] of one."""
    found = [(floats(batch), batch.labels.long()) for batch in batches if len(batch.ids)]
    return Side(*map(torch.cat, zip(*found, strict=True))) if found else None


def in_common(one: Side, other: Side) -> tuple[Side, Side] | None:
    """The images of classes that have FEWEST on both sides, with labels from 0 without a gap; None without any."""
    size = int(max(one.labels.max(), other.labels.max())) + 1
    enough = [torch.bincount(side.labels, minlength=size) >= FEWEST for side in (one, other)]
    both = enough[0] & enough[1]
    number = both.cumsum(0) - 1
    if not both.any():
        return None
    kept = [Side(s.images[both[s.labels]], number[s.labels[both[s.labels]]]) for s in (one, other)]
    return kept[0], kept[1]


class Mismatch:
    """How far one side under a transformation is from the other: class means of features, in standard deviations.

    Both sides have the same classes, as `in_common` leaves them. `features(images)`: what the network makes of images
    in [0, 1], [N,F]. `change(images, amounts)`: images under one transformation, of amounts [d].
    """

    @torch.no_grad()
    def __init__(
        self,
        one: Side,
        other: Side,
        features: Callable[[Tensor], Tensor],
        change: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._one, self._features, self._change = one, features, change
        self._classes = int(other.labels.max()) + 1
        seen = features(other.images)
        self._other = self._means(seen, other.labels)
        variance = (seen - self._other[other.labels]).square().sum(0) / (len(seen) - self._classes)
        self._scale = (variance + STILL * variance.mean()).rsqrt() / (self._classes * len(variance)) ** 0.5
        # What two means of so many images differ by, had they been drawn alike; of unlike classes the mean square.
        images = [torch.bincount(side.labels) for side in (one, other)]
        self.chance = sum((1 / each).mean().item() for each in images) ** 0.5

    def _means(self, features: Tensor, labels: Tensor) -> Tensor:
        """Of the features [N,F] of each class: [classes,F]."""
        member = F.one_hot(labels, self._classes).to(features)
        return (member.T @ features) / member.sum(0)[:, None]

    @torch.no_grad()
    def __call__(self, amounts: Tensor) -> Tensor:
        """The differences [classes * F] under `amounts` [d], on the host; the sum of their squares is a mean square."""
        means = self._means(self._features(self._change(self._one.images, amounts)), self._one.labels)
        return ((means - self._other) * self._scale).flatten().cpu()


@torch.no_grad()
def closest(residuals: Callable[[Tensor], Tensor], size: int, seed: int) -> Tensor:
    """The place [size] in [-FAR, FAR] where the squares of `residuals` are least.

    The search goes on from the best of some places that are drawn; 0 is among them. An amount that makes no difference,
    as a hue does on grey images, is 0.
    """
    drawn = torch.from_numpy(uniform(Key(seed, 0, Stream.MATCH), range(1, STARTS * size), size)).float()
    normal = 2**0.5 * (2 * drawn - 1).clamp(-1 + 1e-6, 1 - 1e-6).erfinv()
    starts = [torch.zeros(size), *(WIDE * normal).clamp(-FAR, FAR)]
    found = sorted((_error(residuals(start)), number) for number, start in enumerate(starts))
    ends = [refined(residuals, starts[number]) for _, number in found[:REFINED]]
    best = min(ends, key=lambda end: _error(residuals(end)))
    for axis in torch.eye(size, dtype=torch.bool):
        without = best.masked_fill(axis, 0)
        if _error(residuals(without)) <= (1 + UNSEEN) * _error(residuals(best)):
            best = without
    return best


def refined(residuals: Callable[[Tensor], Tensor], place: Tensor) -> Tensor:
    """Where the steps of Levenberg and Marquardt end, by differences, from `place` [size]."""
    here, damping = residuals(place), 1e-2
    for _ in range(ROUNDS):
        jacobian = torch.stack([(residuals(place + STEP * axis) - here) / STEP for axis in torch.eye(len(place))], 1)
        slope, curvature = jacobian.T @ here, jacobian.T @ jacobian
        for _ in range(TRIES):
            damped = curvature + damping * curvature.diag().clamp(min=1e-12).diag()
            ahead = (place - torch.linalg.solve(damped, slope)).clamp(-FAR, FAR)
            there = residuals(ahead)
            if _error(there) < _error(here):
                break
            damping *= 5
        else:
            return place
        moved = (ahead - place).abs().max()
        place, here, damping = ahead, there, damping / 5
        if moved < STEP / 10:
            break
    return place


def _error(residuals: Tensor) -> float:
    return residuals.square().sum().item()

"""How many labels are wrong, and how many of the first n in the list, with 95 % intervals: calibrated by planted flips.

Planted images are wrong for certain. The share R(t) of them that scores t or less is the recall of wrong labels at t,
if those of the data are as hard to see. U(t) images of the data score t or less; with F(t) of them rightly labelled,
the data hold W = (U(t) - F(t)) / R(t) wrong labels. Three things are not known and are drawn:

    F(t)    right labels become rarer towards low scores, F(t) ~ t^k with k >= 1. Their density f at t is that of the
            data less W times that of the planted images, so F(t) = f t / k; 1 / k is Beta(1, 5), a sixth on average.
    S       a class of which more than half score t or less was not learned: of those its right labels may be any share,
            which is Beta(1/2, 1/2), the same for all such classes, and they come on top of F(t).
    R(t)    wrong labels of the data may be easier or harder to see than planted ones: the odds of missing one are those
            of the planted images times a factor whose logarithm has the standard deviation `unlike`.

The threshold t is the one whose terms add up to the least error: sampling of R, its factor, F. It lies high: a low one
would count on the most conspicuous labels being the same share of both.

The intervals are quantiles of draws: R from its posterior, missed labels from the negative binomial then (both with
Jeffreys' prior: where none is found, some may still be missed).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
DRAWS, FEWEST = 4000, 10  # draws of an interval; planted images below which nothing is estimated
UNLIKE, ALIKE = 0.7, 0.3  # `unlike` of flips to any class, and of flips that follow the confusion of an earlier run
UNEXPLAINED = (
    "Either they are hard, or wrong in a way that the planted labels are not, which the number then leaves out: train "
    "with run.plant_like=THIS_RUN, in another run.dir, to know"
)
_STEP, _WIDTH = 0.02, 0.05  # between thresholds; width of the kernel of densities
_GRID = np.arange(0.02, 0.99, _STEP)


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Unlearned(NamedTuple):
    """Classes of which most images score low, the scores of these images in ascending order, draws of S [DRAWS]."""

    labels: tuple[int, ...]
    scores: Scores
    right: npt.NDArray[np.float64]

    def false(self, t: float, draw: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draws of how many right labels they have up to a score of t: [DRAWS]."""
        return draw.binomial(int(np.searchsorted(self.scores, t, side="right")), self.right)


class Draws(NamedTuple):
    """What is not known, drawn so many times: recall at the threshold, right labels up to it, k, wrong ones in all.

    `false` are those of classes that were learned.
    """

    recall: npt.NDArray[np.float64]
    false: npt.NDArray[np.int64]
    power: npt.NDArray[np.float64]
    wrong: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """What planted flips tell of the scores [n] of the data, in ascending order; see the head of this file."""

    scores: Scores
    planted: Scores
    threshold: float
    unlearned: Unlearned
    draws: Draws

    @property
    def wrong(self) -> Interval:
        """Wrong labels in all."""
        return _interval(self.draws.wrong)

    @property
    def recall(self) -> Interval:
        """The share of them that scores no more than the threshold."""
        return _interval(self.draws.recall)

    @property
    def unexplained(self) -> int:
        """Images that look more like another class, beyond twice as many as may be wrong; 0 where that is so by chance.

        They are hard, or their labels are wrong in a way that the planted ones are not: then the number is too low.
        """
        suspected = int(np.searchsorted(self.scores, 0.5))
        return suspected if suspected > 2 * self.wrong.high + FEWEST else 0

    def precision(self, n: int) -> Interval:
        """The share of wrong labels among the first `n` of the data, n >= 1."""
        t, flagged = float(self.scores[n - 1]), int(np.searchsorted(self.scores, self.threshold, side="right"))
        _, learned, power, wrong = self.draws
        draw = np.random.default_rng(n)
        if n <= flagged:
            false = draw.binomial(learned, (t / self.threshold) ** power) + self.unlearned.false(t, draw)
            return _interval(1 - np.minimum(false, n) / n)
        beyond = self.planted[self.planted > self.threshold]
        k = int((beyond <= t).sum())
        seen = draw.beta(k + 0.5, len(beyond) - k + 0.5, DRAWS)
        found = flagged - learned - self.unlearned.false(self.threshold, draw)
        return _interval((found + np.minimum(draw.binomial(np.maximum(wrong - found, 0), seen), n - flagged)) / n)


def estimate(
    scores: Scores,
    planted: Scores,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    unlike: float = UNLIKE,
    seed: int = 0,
) -> Estimate | None:
    """The estimate from scores [n] of the data and [m] of planted images, low is bad; None of fewer than FEWEST.

    `labels` [n]: the classes that the data say; without them all are of one class that was learned.
    """
    if len(planted) < FEWEST or not len(scores):
        return None
    order = np.argsort(scores, kind="stable")
    scores, planted = scores[order], np.sort(planted)
    able = _thresholds(scores, planted)
    t = able[int(np.argmin([_error(scores, planted, at, unlike) for at in able]))]
    unlearned = _unlearned(scores, None if labels is None else labels[order], t, seed)
    return Estimate(scores, planted, t, unlearned, _draws(scores, planted, t, unlearned, unlike, seed))


def _unlearned(scores: Scores, labels: npt.NDArray[np.int64] | None, t: float, seed: int) -> Unlearned:
    """Classes of which more than half of the images score `t` or less; scores ascend."""
    right = np.random.default_rng([seed, 1]).beta(0.5, 0.5, DRAWS)
    if labels is None:
        return Unlearned((), scores[:0], right)
    low = scores <= t
    counts = np.bincount(labels)
    few = np.flatnonzero(2 * np.bincount(labels[low], minlength=len(counts)) > counts)
    return Unlearned(tuple(few.tolist()), scores[low & np.isin(labels, few)], right)


def _recall(planted: Scores, t: float) -> float:
    return (np.searchsorted(planted, t, side="right") + 0.5) / (len(planted) + 1)


def _density(scores: Scores) -> Scores:
    """How dense `scores` are at each threshold of the grid: a number per unit of score."""
    edges = np.append(_GRID - _STEP / 2, _GRID[-1] + _STEP / 2)
    counts = np.histogram(scores, edges)[0]
    kernel = np.exp(-0.5 * (np.arange(-15, 16) * _STEP / _WIDTH) ** 2)
    return np.convolve(counts, kernel / kernel.sum(), "same") / _STEP


def _densities(scores: Scores, planted: Scores, t: float) -> tuple[float, float, float]:
    """How dense wrong and right labels of the data are at `t`, and the standard error of either from planted images.

    Right labels are no denser there than anywhere from it to their peak.
    """
    own, data, at = _density(planted), _density(scores), int(np.argmin(abs(t - _GRID)))
    wrong = own / len(planted) * np.searchsorted(scores, t, side="right") / _recall(planted, t)
    right = np.maximum(data - wrong, 1.0)[at : 1 + at + int(np.argmax(data[at:]))]
    near = max(float(own[at]) * _WIDTH * 2 * np.pi**0.5, 1.0)  # planted images that the kernel sees
    return float(wrong[at]), float(right.min()), float(wrong[at]) / near**0.5


def _thresholds(scores: Scores, planted: Scores) -> list[float]:
    """Those that find half of the planted images, up to the valley of the data, or while right labels are the rarer."""
    data = _density(scores)
    first = int(np.argmax([_recall(planted, t) >= 0.5 for t in _GRID]))
    high = max(first, min(int(np.searchsorted(_GRID, np.quantile(planted, 0.75))), len(_GRID) - 1))
    peak = high + int(np.argmax(data[high:]))
    valley = first + int(np.argmin(data[first : peak + 1]))
    kept = [first]
    for at in range(first + 1, peak):
        wrong, right, _ = _densities(scores, planted, float(_GRID[at]))
        if at <= valley or right <= wrong:
            kept.append(at)
    return [float(_GRID[at]) for at in kept]


def _error(scores: Scores, planted: Scores, t: float, unlike: float) -> float:
    """Roughly the relative error of the number of wrong labels as counted at `t`."""
    recall, flagged = _recall(planted, t), max(int(np.searchsorted(scores, t, side="right")), 1)
    sampling = np.sqrt((1 - recall) / (recall * len(planted)))
    right = _densities(scores, planted, t)[1]
    return float(np.hypot(sampling, 2 * (1 - recall) * unlike) + right * t / (6 * flagged))


def _draws(scores: Scores, planted: Scores, t: float, unlearned: Unlearned, unlike: float, seed: int) -> Draws:
    draw = np.random.default_rng(seed)
    k, m = int(np.searchsorted(planted, t, side="right")), len(planted)
    flagged = int(np.searchsorted(scores, t, side="right"))
    share = draw.beta(1, 5, DRAWS)
    _, right, error = _densities(scores, planted, t)
    density = np.maximum(right + error * draw.normal(size=DRAWS), 1.0)
    false = np.minimum(draw.poisson(share * density * t), flagged - len(unlearned.scores))
    missing = 1 - draw.beta(k + 0.5, m - k + 0.5, DRAWS)
    odds = missing / (1 - missing) * np.exp(unlike * draw.normal(0.5, 1, DRAWS))
    recall = 1 / (1 + odds)
    found = flagged - false - unlearned.false(t, np.random.default_rng([seed, 2]))
    missed = draw.negative_binomial(found + 0.5, recall)
    return Draws(recall, false, 1 / share, np.minimum(found + missed, len(scores)))


def _interval(draws: npt.NDArray[Any]) -> Interval:
    low, middle, high = np.quantile(draws, (0.025, 0.5, 0.975))
    return Interval(float(middle), float(low), float(high))

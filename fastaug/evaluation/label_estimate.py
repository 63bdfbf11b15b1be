"""How many labels are wrong, and how many of the first n in the list, with 95 % intervals: calibrated by planted flips.

Planted images are wrong for certain, so the share R(t) of them that scores t or less is the recall of wrong labels at
t, and that of wrong labels in the data if they are as hard to see. With U(t) images of the data that score t or less,
F(t) of them rightly labelled, the data hold W = (U(t) - F(t)) / R(t) wrong labels at any t.

The threshold: the least U(t) / r(t), r the lower end of the recall's 68 % interval, after the best bin of Garg et al.,
NeurIPS 2021: as few false alarms as can be without living from a handful of planted images. False alarms below it are
not seen. Their density is taken to fall from the valley of the scores downwards, so F(t) is at most t times the least
density that the data have around t; every number up to that bound is as likely.

The intervals are quantiles of draws: recalls from their posterior (Jeffreys), false alarms as said, wrong labels beyond
the threshold from the negative binomial that the recall gives.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
DRAWS, FEWEST = 4000, 10  # draws of an interval; planted images below which nothing is estimated
_VALLEY, _WINDOW = (0.25, 0.95), 0.1  # scores among which the valley is looked for, and how wide one window is


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """What planted flips tell: `scores` [n] of the data in ascending order, and draws of what is not known.

    `wrong`: wrong labels in all. `threshold`: see the head of this file; `recall` there.
    """

    scores: Scores
    planted: Scores
    threshold: float
    recall: Interval
    wrong: Interval
    _false: npt.NDArray[np.float64]  # false alarms up to the threshold, a draw each
    _recalls: npt.NDArray[np.float64]
    _wrong: npt.NDArray[np.float64]
    _seed: int

    def precision(self, n: int) -> Interval:
        """The share of wrong labels among the first `n` of the data, n >= 1."""
        t = self.scores[n - 1]
        at = int((self.scores <= self.threshold).sum())
        if n <= at:
            share = (t / self.threshold if self.threshold > 0 else 1.0) * n / max(n, 1)
            found = n - np.minimum(self._false * min(1.0, share), n)
        else:
            draw = np.random.default_rng(self._seed + 1)
            within = at - self._false
            beyond = self._wrong - within
            k, m = ((self.planted > self.threshold) & (self.planted <= t)).sum(), (self.planted > self.threshold).sum()
            seen = draw.beta(k + 0.5, m - k + 0.5, DRAWS)
            found = within + np.minimum(beyond * seen, n - at)
        return _interval(found / n)


def estimate(scores: Scores, planted: Scores, seed: int = 0) -> Estimate | None:
    """The estimate from scores [n] of the data and [m] of planted images, low is bad; None of too few planted ones."""
    scores, planted = np.sort(scores), np.sort(planted)
    if len(planted) < FEWEST or not len(scores):
        return None
    draw = np.random.default_rng(seed)
    m = len(planted)
    k = np.searchsorted(planted, planted, side="right")  # planted images that score as low as each
    flagged = np.searchsorted(scores, planted, side="right")
    recall = (k + 0.5) / (m + 1)
    lower = recall - np.sqrt(recall * (1 - recall) / (m + 2))
    best = int(np.argmin(np.where(k >= FEWEST / 2, (flagged + 1) / np.maximum(lower, 1e-9), np.inf)))
    t, u = float(planted[best]), int(flagged[best])
    recalls = draw.beta(k[best] + 0.5, m - k[best] + 0.5, DRAWS)
    false = np.minimum(draw.poisson(draw.uniform(0, 1, DRAWS) * _false_alarms(scores, planted, t, u / recall[best])), u)
    seen = u - false
    missed = draw.negative_binomial(np.maximum(seen, 1), recalls)
    wrong = np.minimum(seen + missed, len(scores)).astype(np.float64)
    return Estimate(
        scores, planted, t, _interval(recalls), _interval(wrong), false.astype(np.float64), recalls, wrong, seed
    )


def _false_alarms(scores: Scores, planted: Scores, t: float, wrong: float) -> float:
    """The most false alarms below `t` that the least density of right labels in the valley allows."""
    least = np.inf
    for low in np.arange(_VALLEY[0], _VALLEY[1] - _WINDOW, _WINDOW / 4):
        inside = float(((scores > low) & (scores <= low + _WINDOW)).sum())
        own = wrong * float(((planted > low) & (planted <= low + _WINDOW)).mean())
        least = min(least, (max(inside - own, 0.0) + 1) / _WINDOW)
    return least * t


def _interval(draws: npt.NDArray[np.float64]) -> Interval:
    low, middle, high = np.quantile(draws, (0.025, 0.5, 0.975))
    return Interval(float(middle), float(low), float(high))

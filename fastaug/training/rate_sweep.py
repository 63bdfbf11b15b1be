"""The learning-rate range test: the training loss while the rate rises exponentially (Smith, arXiv:1506.01186)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastaug.errors import NonFiniteError
from fastaug.nets.optim import scale_of
from fastaug.training.build import Trainer
from fastaug.training.loop import train_step

SMOOTH = 0.9  # share of the mean loss that an update keeps
DIVERGED = 4.0  # times the lowest loss at which the sweep ends
EARLIEST = 10  # updates before a suggestion is made


class Sweep(NamedTuple):
    """A sweep: the rate of each update, its loss, and the smoothed one. `diverged`: whether the loss rose out of sight.

    `steepest`: the rate at which the smoothed loss falls fastest over the logarithm of the rate. `lowest`: that at
    which it is lowest, too large to train with. None where the sweep is too short or the loss did not fall.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None
    lowest: float | None
    diverged: bool

    @property
    def suggestion(self) -> float | None:
        """A rate to train with: a tenth of that at which the smoothed loss is lowest."""
        return None if self.lowest is None else self.lowest / 10


def sweep(trainer: Trainer, low: float, high: float, updates: int) -> Sweep:
    """Trains `updates` updates with rates from `low` to `high`, or until the loss is not finite or far above its best.

    Each update reads its loss: a host sync. The network is of no use afterwards.
    """
    ratio = (high / low) ** (1 / max(1, updates - 1))
    rates, losses, diverged = [], list[float](), False

    def set_rate(update: int) -> float:
        for group in trainer.optimizer.param_groups:
            group["lr"] = low * ratio**update * scale_of(group)
        return low * ratio**update

    trainer.set_rate = set_rate
    batches = trainer.loader.batches(trainer.order.requests(0, updates))
    for _ in range(updates):
        try:
            rate = train_step(trainer, batches)
            trainer.finite.settle()
            loss, _ = trainer.meter.read()
        except NonFiniteError:
            diverged = True
            break
        rates.append(rate)
        losses.append(loss)
        if not math.isfinite(loss) or loss > DIVERGED * min(losses):
            diverged = True
            break
    mean = smoothed(losses)
    return Sweep(rates, losses, mean, *turning_points(rates, mean), diverged)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential means of `losses`, corrected for their start as Adam's moments are."""
    found, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        found.append(mean / (1 - SMOOTH**number))
    return found


def turning_points(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, float | None]:
    """The rate at which the smoothed `losses` fall fastest before they are lowest, and that at which they are lowest.

    (None, None) where the sweep is too short, or the loss never fell.
    """
    lowest = min(range(len(losses)), key=losses.__getitem__, default=0)
    if lowest < EARLIEST:
        return None, None
    slopes = {
        i: (losses[i + 1] - losses[i - 1]) / (math.log(rates[i + 1]) - math.log(rates[i - 1])) for i in range(2, lowest)
    }
    return rates[min(slopes, key=slopes.__getitem__)], rates[lowest]

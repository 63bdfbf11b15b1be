import math

import pytest

from fastaug.training.rate_sweep import Sweep, smoothed, turning_points

RATES = [10 ** (-5 + number / 10) for number in range(60)]


def test_the_mean_has_no_start() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.81)])


def test_the_steepest_fall_and_the_lowest_loss() -> None:
    losses = [
        2 - 1 / (1 + math.exp(-3 * (math.log10(rate) + 2.5))) + max(0, math.log10(rate) + 1) ** 2 for rate in RATES
    ]
    steepest, lowest = turning_points(RATES, losses)
    assert steepest is not None
    assert lowest is not None
    assert math.log10(steepest) == pytest.approx(-2.5, abs=0.11)
    assert losses[RATES.index(lowest)] == min(losses)
    assert Sweep(RATES, losses, losses, steepest, lowest, True).suggestion == lowest / 10


def test_a_loss_that_does_not_fall_gives_no_suggestion() -> None:
    assert turning_points(RATES, [1 + rate for rate in RATES]) == (None, None)
    assert turning_points([], []) == (None, None)
    assert Sweep([], [], [], None, None, True).suggestion is None

"""The table of sample weights: how it moves."""

import pytest
import torch

from fastaug.meta.sample_tables import WeightTable

NOBODY = 5  # an id that is not in the batch


@pytest.fixture
def table():
    return WeightTable(6, lr=0.1)


def moved(table, gradient, rate=0.1):
    table.lr = rate
    table.move(torch.arange(len(gradient)), torch.tensor(gradient))
    return table.weight.tolist()


def test_weights_start_at_one_and_move_against_the_gradient_whatever_its_scale(table):
    other = WeightTable(6, lr=0.1)
    found = moved(table, [1.0, -1.0, 2.0, -4.0])
    assert moved(other, [1e-9, -1e-9, 2e-9, -4e-9]) == pytest.approx(found)
    assert [w < 1 for w in found[:4]] == [True, False, True, False]
    assert found[NOBODY] == 1
    rms = (22 / 4) ** 0.5  # the mean, -0.5, stays in: larger weights would help
    assert found[:4] == pytest.approx([1 - 0.1 / rms, 1 + 0.1 / rms, 1 - 0.2 / rms, 1 + 0.4 / rms])


def test_what_would_shrink_all_weights_together_is_taken_out(table):
    found = moved(table, [3.0, 1.0])
    assert found[:2] == pytest.approx([0.9, 1.1])
    assert moved(WeightTable(2, lr=0.1), [2.0, 2.0]) == [1, 1]


def test_a_sample_without_weight_does_not_count_in_that_mean(table):
    table.weight[:] = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    found = moved(table, [9.0, 1.0, -1.0, 0.0])
    assert found[0] == 0
    assert found[3] == pytest.approx(1)  # the plain mean, 2.25, would have raised it
    assert found[1] < 1 < found[2]


def test_a_step_is_clipped_and_stops_at_the_bounds_from_which_weights_come_back(table):
    gradient = [1.0, -1e6, *[0.0] * 4]
    assert moved(table, [0.0] * 5 + [-1e6])[5] == pytest.approx(1 + 0.1 * 6**0.5)  # |g| / rms of one in six
    many = WeightTable(100, lr=0.1)
    many.move(torch.arange(100), torch.tensor([-1.0] + [0.0] * 99))
    assert many.weight[0].item() == pytest.approx(1.3)  # 10 rms, clipped at 3
    table = WeightTable(6, lr=0.1)
    for _ in range(9):
        moved(table, gradient, rate=1.0)
    assert table.weight[1].item() == table.bounds[1] == 2
    for _ in range(9):
        moved(table, [-g for g in gradient], rate=1.0)
    assert table.weight[1].item() == table.bounds[0] == 0
    assert moved(table, gradient)[1] > 0


def test_samples_whose_gradient_is_not_finite_stay_and_do_not_disturb_the_others(table):
    found = moved(table, [float("nan"), 1.0, -2.0, float("inf")])
    assert found[0] == found[3] == 1
    assert found[1:3] == pytest.approx(moved(WeightTable(2, lr=0.1), [1.0, -2.0]))
    assert moved(WeightTable(2, lr=0.1), [float("nan")] * 2) == [1, 1]

"""Tables by id: how the rows of sample weights move, and RMSprop of rows against torch's of the whole table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.meta.parts.weights import BOUNDS
from fastaug.meta.sample_tables import RowRMSprop, RowTable, ScaleFreeStep

NOBODY = 5  # an id that is not in the batch


def weight_table(size):
    return RowTable(torch.ones(size), ScaleFreeStep(0.1, levels=True), BOUNDS)


@pytest.fixture
def table():
    return weight_table(6)


def moved(table, gradient, rate=0.1):
    table.update.lr = rate
    table.move(torch.arange(len(gradient)), torch.tensor(gradient))
    return table.weight.tolist()


def test_weights_start_at_one_and_move_against_the_gradient_whatever_its_scale(table):
    other = weight_table(6)
    found = moved(table, [1.0, -1.0, 2.0, -4.0])
    assert moved(other, [1e-9, -1e-9, 2e-9, -4e-9]) == pytest.approx(found)
    assert [w < 1 for w in found[:4]] == [True, False, True, False]
    assert found[NOBODY] == 1
    rms = (22 / 4) ** 0.5  # the mean, -0.5, stays in: larger weights would help
    assert found[:4] == pytest.approx([1 - 0.1 / rms, 1 + 0.1 / rms, 1 - 0.2 / rms, 1 + 0.4 / rms])


def test_what_would_shrink_all_weights_together_is_taken_out(table):
    found = moved(table, [3.0, 1.0])
    assert found[:2] == pytest.approx([0.9, 1.1])
    assert moved(weight_table(2), [2.0, 2.0]) == [1, 1]


def test_a_sample_without_weight_does_not_count_in_that_mean(table):
    table.weight[:] = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    found = moved(table, [9.0, 1.0, -1.0, 0.0])
    assert found[0] == 0
    assert found[3] == pytest.approx(1)  # the plain mean, 2.25, would have raised it
    assert found[1] < 1 < found[2]


def test_a_step_is_clipped_and_stops_at_the_bounds_from_which_weights_come_back(table):
    gradient = [1.0, -1e6, *[0.0] * 4]
    assert moved(table, [0.0] * 5 + [-1e6])[5] == pytest.approx(1 + 0.1 * 6**0.5)  # |g| / rms of one in six
    many = weight_table(100)
    many.move(torch.arange(100), torch.tensor([-1.0] + [0.0] * 99))
    assert many.weight[0].item() == pytest.approx(1.3)  # 10 rms, clipped at 3
    table = weight_table(6)
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
    assert found[1:3] == pytest.approx(moved(weight_table(2), [1.0, -2.0]))
    assert moved(weight_table(2), [float("nan")] * 2) == [1, 1]


# ---- RMSprop of rows ----


@settings(max_examples=25)
@given(
    visits=st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=40),
    scale=st.sampled_from([1e-6, 1e-2, 1e2]),
    width=st.sampled_from([(), (3,)]),
)
def test_rmsprop_of_rows_is_that_of_the_whole_table(visits, scale, width):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, *width, generator=generator, dtype=torch.float64)
    table = RowTable(start, RowRMSprop(0.05, start))
    dense = start.clone().requires_grad_()
    optimizer = torch.optim.RMSprop([dense], lr=0.05, alpha=0.99, eps=1e-8)
    for visit in visits:
        ids = torch.tensor(sorted(visit))
        gradient = scale * torch.randn(len(ids), *width, generator=generator, dtype=torch.float64)
        table.move(ids, gradient)
        dense.grad = torch.zeros_like(dense).index_copy_(0, ids, gradient)
        optimizer.step()
        torch.testing.assert_close(table.weight, dense.detach(), rtol=1e-9, atol=1e-12)


def test_a_row_met_once_in_a_while_takes_long_steps():
    table = RowTable(torch.zeros(2, 3), RowRMSprop(0.05, torch.zeros(2, 3)))
    table.move(torch.tensor([0]), torch.tensor([[1.0, -2.0, 0.0]]))
    assert table.weight.tolist() == [pytest.approx([-0.5, 0.5, 0.0], rel=1e-5), [0, 0, 0]]
    for _ in range(500):
        table.move(torch.tensor([1]), torch.ones(1, 3))
    before = table.weight[0].clone()
    table.move(torch.tensor([0]), torch.full((1, 3), 1e-3))
    assert (before - table.weight[0] > 0.1).tolist() == [False, False, True]  # nothing is left of where it was 0


def test_a_row_with_a_number_that_is_not_finite_stays_under_either_update():
    for update in (RowRMSprop(0.05, torch.zeros(3, 2)), ScaleFreeStep(0.05)):
        table = RowTable(torch.zeros(3, 2), update)
        table.move(torch.arange(2), torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]))
        assert (table.weight != 0).tolist() == [[False, False], [True, True], [False, False]]
        assert all(value.isfinite().all() for value in table.state_dict().values())


def test_a_table_continues_where_it_was_with_more_or_fewer_images_behind():
    def made(size):
        return RowTable(torch.zeros(size, 2), RowRMSprop(0.05, torch.zeros(size, 2)))

    table = made(4)
    table.move(torch.tensor([1, 3]), torch.ones(2, 2))
    for size in (3, 6):
        other = made(size)
        other.load_state_dict(table.state_dict())
        for name, value in other.state_dict().items():
            known = table.state_dict()[name]
            assert value.equal(known) if value.ndim == 0 else value[:4].equal(known[:size]), name
    assert (other.weight[4:] == 0).all()

import functools
import operator
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.data.sampler import Order, evaluation_requests, piece_bounds
from fastaug.errors import DataError


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Any order that can be trained on; ids with gaps, as a split has them."""
    count = draw(st.integers(1, 200))
    gaps = draw(st.integers(1, 3))
    return Order(
        ids=np.arange(count, dtype=np.int64) * gaps + 5,
        seed=draw(st.integers(0, 2**63 - 1)),
        batch_size=draw(st.integers(1, count)),
        world=draw(st.integers(1, 4)),
        accumulate=draw(st.integers(1, 3)),
        drop_last=draw(st.booleans()),
        group=draw(st.sampled_from([1, 1, 2, 4, 7])),
    )


def of_rank(order: Order, rank: int) -> Order:
    return Order(**{**vars(order), "rank": rank})


def alone(order: Order) -> Order:
    """The same order for one process without micro-batches."""
    return Order(**{**vars(order), "world": 1, "rank": 0, "accumulate": 1})


@given(orders())
def test_every_id_once_an_epoch(order: Order) -> None:
    order = Order(**{**vars(order), "drop_last": False})
    for epoch in (0, 3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        requests = list(alone(order).requests(steps.start, steps.stop))
        assert {request.epoch for request in requests} == {epoch}
        np.testing.assert_array_equal(np.sort(np.concatenate([r.ids for r in requests])), order.ids)


@given(orders())
def test_drop_last_leaves_out_less_than_a_batch_and_repeats_nothing(order: Order) -> None:
    order = alone(Order(**{**vars(order), "drop_last": True}))
    sizes = [len(request.ids) for request in order.requests(0, order.steps_per_epoch)]
    assert sizes == [order.batch_size] * (len(order.ids) // order.batch_size)
    seen = np.concatenate([request.ids for request in order.requests(0, order.steps_per_epoch)])
    assert len(np.unique(seen)) == len(seen)


@given(orders())
def test_pieces_of_all_ranks_make_the_sequence_of_one_process(order: Order) -> None:
    steps = 2 * order.steps_per_epoch + 1
    whole = [request.ids for request in alone(order).requests(0, steps)]
    ranks = [list(of_rank(order, rank).requests(0, steps)) for rank in range(order.world)]
    for step in range(steps):
        cut = slice(step * order.accumulate, (step + 1) * order.accumulate)
        pieces = [request.ids for micro in zip(*(rank[cut] for rank in ranks), strict=True) for request in micro]
        np.testing.assert_array_equal(np.concatenate(pieces), whole[step])
        assert len(whole[step]) == order.size(step)


@given(orders(), st.floats(0.01, 1), st.data())
def test_what_is_spread_does_not_depend_on_the_processes_and_lies_in_their_last_micro_batches(
    order: Order, share: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, 2 * order.steps_per_epoch))
    chosen = order.spread(step, share, 2)
    for world in (1, 2, 3):
        ranks = [Order(**{**vars(order), "world": world, "rank": rank}) for rank in range(world)]
        np.testing.assert_array_equal(ranks[-1].spread(step, share, 2), chosen)
        last = [list(rank.requests(step, step + 1))[-1].draws() for rank in ranks]
        met = np.concatenate([draws[np.isin(draws, chosen)] for draws in last])
        np.testing.assert_array_equal(met, chosen)
        size = sum(map(len, last))
        assert len(chosen) == min(size, max(2, round(share * size)))
        if order.group == 1:  # cut evenly, every process has its part
            parts = [int(np.isin(draws, chosen).sum()) for draws in last]
            assert max(parts) - min(parts) <= 2


def test_copies_of_an_image_are_spread_as_images_are() -> None:
    order = Order(np.arange(40), 0, 8, repeats=2)
    chosen = order.spread(3, 0.5, 2)
    assert len(np.unique(chosen)) == 4
    assert np.isin(chosen, next(order.requests(3, 4)).draws()).all()


@given(size=st.integers(0, 500), parts=st.integers(1, 16), group=st.integers(1, 9))
def test_cuts_lie_at_multiples_of_the_group_and_are_nearly_equal(size: int, parts: int, group: int) -> None:
    bounds = piece_bounds(size, parts, group)
    assert len(bounds) == parts + 1
    assert bounds[0] == 0
    assert bounds[-1] == size
    assert all(bound % group == 0 or bound == size for bound in bounds)
    whole_groups = np.diff(-(-bounds // group))
    assert whole_groups.min() >= 0
    assert whole_groups.max() - whole_groups.min() <= 1


@given(orders(), st.integers(0, 1000))
def test_position_counts_the_samples_consumed_and_step_undoes_it(order: Order, step: int) -> None:
    assert order.step(order.position(step)) == step
    assert order.position(step + 1) - order.position(step) == order.size(step)
    assert order.position(0) == 0


def test_a_position_inside_an_update_is_refused() -> None:
    with pytest.raises(ValueError, match="position 13 is inside an update of 4 images"):
        Order(np.arange(10), 0, 4).step(13)


@given(orders(), st.data())
def test_a_restart_at_any_step_gives_the_tail(order: Order, data: st.DataObject) -> None:
    last = 3 * order.steps_per_epoch
    first = data.draw(st.integers(0, last))
    rank = of_rank(order, data.draw(st.integers(0, order.world - 1)))
    tail = list(rank.requests(0, last))[first * order.accumulate :]
    restarted = list(rank.requests(first, last))
    assert [request.epoch for request in restarted] == [request.epoch for request in tail]
    for one, other in zip(restarted, tail, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


def test_the_next_epoch_and_another_seed_are_other_orders() -> None:
    order = Order(np.arange(1000), 0, 10)
    other = Order(np.arange(1000), 1, 10)
    first = order.epoch_ids(0)
    for shuffled in (first, order.epoch_ids(1), other.epoch_ids(0)):
        assert np.mean(shuffled == np.arange(1000)) < 0.02
    assert np.mean(first == order.epoch_ids(1)) < 0.02
    assert np.mean(first == other.epoch_ids(0)) < 0.02
    np.testing.assert_array_equal(first, order.epoch_ids(0))


def test_ids_may_not_be_changed_by_reading_the_order() -> None:
    order = Order(np.arange(50), 0, 10)
    request = next(order.requests(0, 1))
    request.ids[:] = -1
    np.testing.assert_array_equal(order.ids, np.arange(50))
    assert order.epoch_ids(0).min() == 0


@given(count=st.integers(0, 100), batch=st.integers(1, 30))
@settings(max_examples=50)
def test_evaluation_covers_every_id_once_with_the_same_batches_at_any_world(count: int, batch: int) -> None:
    ids = np.arange(count, dtype=np.int64) * 3
    whole = [request.ids.tolist() for request in evaluation_requests(ids, batch, 1, 0)]
    assert functools.reduce(operator.iadd, whole, []) == ids.tolist()
    for world in (2, 3):
        dealt = [[r.ids.tolist() for r in evaluation_requests(ids, batch, world, rank)] for rank in range(world)]
        assert sorted(functools.reduce(operator.iadd, dealt, [])) == sorted(whole)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def checked(images: int, batch_size: int, **kwargs: int) -> None:
    Order(np.arange(images), 0, batch_size, **kwargs).check(2)


def test_check_names_a_batch_larger_than_the_split() -> None:
    with pytest.raises(DataError, match=r"train.batch_size: 20 is larger than .* 10 images; set it to 10 or less"):
        checked(10, 20)
    checked(20, 20)


def test_check_names_a_batch_too_small_for_its_pieces() -> None:
    message = "every batch of an epoch has 7 images for 2 processes x 2 micro-batches, which leaves one of them with 1"
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        checked(70, 7, world=2, accumulate=2)
    assert str(caught.value).endswith("choose another train.batch_size, fewer micro-batches or processes")
    checked(80, 8, world=2, accumulate=2)


def test_check_names_a_last_batch_too_small_unless_it_is_dropped() -> None:
    with pytest.raises(DataError, match="the last batch of an epoch has 1 images for 1 processes"):
        checked(65, 8)
    checked(65, 8, drop_last=True)
    checked(66, 8)
    with pytest.raises(DataError, match="the last batch of an epoch has 3 images for 2 processes"):
        checked(67, 8, world=2)


@given(orders())
def test_check_passes_exactly_when_every_piece_has_two_images(order: Order) -> None:
    sizes = [len(r.ids) for rank in range(order.world) for r in of_rank(order, rank).requests(0, order.steps_per_epoch)]
    if min(sizes) >= 2:
        order.check(2)
    else:
        with pytest.raises(DataError, match=r"train\.batch_size"):
            order.check(2)


@settings(max_examples=50)
@given(st.integers(2, 4), st.integers(4, 60), st.integers(1, 3), st.integers(1, 2))
def test_repeated_augmentation_puts_all_copies_of_an_image_into_one_update(repeats, images, world, accumulate):
    batch = repeats * 4
    orders = [
        Order(np.arange(100, 100 + images), 5, batch, world, rank, accumulate, repeats=repeats) for rank in range(world)
    ]
    seen = []
    for step in range(orders[0].steps_per_epoch):
        requests = [request for order in orders for request in order.requests(step, step + 1)]
        assert sum(len(request.ids) for request in requests) == orders[0].size(step)
        pairs = [(int(i), int(c)) for request in requests for i, c in zip(request.ids, request.copies, strict=True)]
        assert len(set(pairs)) == len(pairs)
        here = {i for i, _ in pairs}
        assert set(pairs) == {(i, c) for i in here for c in range(repeats)}
        draws = np.concatenate([request.draws() for request in requests])
        assert len(set(draws.tolist())) == len(pairs)
        seen += sorted(here)
    assert len(seen) == len(set(seen)) == images // repeats


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (2, 2)])
def test_all_views_of_an_image_are_in_one_micro_batch(world: int, accumulate: int) -> None:
    """An epoch and an update count images; what is differentiated has all views too, the same at any world size."""
    plain = Order(np.arange(20), 5, 8)
    ranks = [Order(np.arange(20), 5, 8, world, rank, accumulate, views=3) for rank in range(world)]
    assert ranks[0].steps_per_epoch == plain.steps_per_epoch
    for step in range(plain.steps_per_epoch):
        seen = []
        for order in ranks:
            for request in order.requests(step, step + 1):
                images = len(request.ids) // 3
                np.testing.assert_array_equal(request.ids, np.tile(request.ids[:images], 3))
                np.testing.assert_array_equal(request.copies, np.repeat([0, 1, 2], images))
                assert len(request.ids) <= order.largest_piece()
                seen += request.ids[:images].tolist()
        assert sorted(seen) == sorted(plain.update(step).ids.tolist())
        chosen = ranks[0].spread(step, 0.5, 2)
        images = chosen[: len(chosen) // 3]
        expected = Order(np.arange(20), 5, 8, world, 0, accumulate).spread(step, 0.5, 2)
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(chosen, np.concatenate([images, images | (1 << 32), images | (2 << 32)]))

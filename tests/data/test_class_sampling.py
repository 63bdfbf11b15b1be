"""Uneven sampling: shares of classes, walks through their images, the same epochs at any number of processes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastaug.data.class_sampling import ClassDraws, class_shares, earlier_of
from fastaug.data.sampler import Order
from fastaug.errors import DataError
from fastaug.seeding import parts_of


def drawn(counts: list[int], sampling: str, seed: int = 0) -> ClassDraws:
    """Of classes of so many images, whose ids are mixed and have gaps."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return ClassDraws(np.arange(len(labels)) * 3 + 5, labels, class_shares(np.array(counts), sampling), seed)


def ids_by_class(draws: ClassDraws, epoch: int) -> list[list[int]]:
    """What an epoch has of each class, in the order of the class's walk."""
    ids, _ = parts_of(draws.epoch(epoch))
    label = dict(zip(draws.ids.tolist(), draws.labels.tolist(), strict=True))
    return [[i for i in ids.tolist() if label[i] == c] for c in range(len(draws.shares))]


def test_shares_are_those_of_their_definitions() -> None:
    counts = np.array([100, 25, 1])
    assert class_shares(counts, "natural").tolist() == pytest.approx([100 / 126, 25 / 126, 1 / 126])
    assert class_shares(counts, "balanced").tolist() == pytest.approx([1 / 3] * 3)
    assert class_shares(counts, "sqrt").tolist() == pytest.approx([10 / 16, 5 / 16, 1 / 16])


@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.sampled_from(["balanced", "sqrt"]))
def test_epochs_have_the_size_of_the_split_and_classes_their_shares_to_one_image(
    counts: list[int], sampling: str
) -> None:
    draws, total = drawn(counts, sampling), sum(counts)
    found = np.array([[len(own) for own in ids_by_class(draws, epoch)] for epoch in range(5)])
    assert (found.sum(1) == total).all()
    ahead = np.abs(found.cumsum(0) - np.arange(1, 6)[:, None] * total * draws.shares)
    assert ahead.max() < 1 + 1e-6  # over all epochs, not only in each: nothing adds up


@given(st.lists(st.integers(1, 15), min_size=2, max_size=6), st.sampled_from(["balanced", "sqrt"]))
def test_no_image_comes_again_before_all_of_its_class_have_come(counts: list[int], sampling: str) -> None:
    draws = drawn(counts, sampling)
    epochs = [ids_by_class(draws, epoch) for epoch in range(4)]
    for label, count in enumerate(counts):
        walk = [i for epoch in epochs for i in epoch[label]]
        for start in range(0, len(walk), count):
            assert len(set(walk[start : start + count])) == len(walk[start : start + count])


def test_every_pass_has_an_order_of_its_own() -> None:
    draws = drawn([300, 30], "balanced")
    rare = ids_by_class(draws, 0)[1]
    passes = [rare[start : start + 30] for start in range(0, 150, 30)]
    assert len({tuple(own) for own in passes}) == 5
    assert len({tuple(sorted(own)) for own in passes}) == 1
    assert ids_by_class(drawn([300, 30], "balanced", seed=1), 0)[1] != rare


def test_copies_number_the_images_of_an_epoch() -> None:
    ids, copies = parts_of(drawn([50, 3], "balanced").epoch(2))
    assert len(set(zip(ids.tolist(), copies.tolist(), strict=True))) == len(ids)
    for sample, times in Counter(ids.tolist()).items():
        assert sorted(copies[ids == sample].tolist()) == list(range(times))


@given(st.lists(st.integers(0, 5), max_size=30))
def test_earlier_ones_are_counted(values: list[int]) -> None:
    found = earlier_of(np.array(values, dtype=np.int64))
    assert found.tolist() == [values[:i].count(value) for i, value in enumerate(values)]


@pytest.mark.parametrize("sampling", ["balanced", "sqrt"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_any_processes_and_any_restart_give_the_same_updates(sampling: str, drop_last: bool) -> None:
    draws = drawn([40, 9, 2], sampling)
    settings = {"drawn": draws, "drop_last": drop_last}
    alone = Order(draws.ids, 3, 8, **settings)
    steps = 3 * alone.steps_per_epoch
    whole = [request.draws() for request in alone.requests(0, steps)]
    assert sum(map(len, whole)) == 3 * (48 if drop_last else 51)
    for world, accumulate, first in ((2, 1, 0), (3, 2, 4)):
        ranks = [
            list(Order(draws.ids, 3, 8, world, rank, accumulate, **settings).requests(first, steps))
            for rank in range(world)
        ]
        for step in range(first, steps):
            cut = slice((step - first) * accumulate, (step - first + 1) * accumulate)
            pieces = [r.draws() for micro in zip(*(own[cut] for own in ranks), strict=True) for r in micro]
            np.testing.assert_array_equal(np.concatenate(pieces), whole[step])


def test_an_epoch_is_mixed_over_the_classes() -> None:
    draws = drawn([400, 100], "balanced")
    ids = np.concatenate([request.ids for request in Order(draws.ids, 0, 10, drawn=draws).requests(0, 50)])
    rare = np.isin(ids, draws.ids[draws.labels == 1])
    halves = rare[:250].sum(), rare[250:].sum()
    assert sum(halves) == 250
    assert abs(halves[0] - halves[1]) < 60


def test_more_copies_than_draws_can_tell_apart_are_refused() -> None:
    labels = np.zeros(2**18, dtype=np.int64)
    labels[0] = 1
    with pytest.raises(DataError, match=r"data\.sampling: an image of the smallest class would be drawn 131074 times"):
        ClassDraws(np.arange(2**18), labels, np.array([0.5, 0.5]), 0)

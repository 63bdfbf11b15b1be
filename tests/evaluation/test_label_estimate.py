"""The number of wrong labels and the precision of a list, on scores whose truth is known."""

import numpy as np
import pytest

from fastaug.evaluation.label_estimate import FEWEST, estimate


def scores_of(draw, count, mean, spread):
    return 1 / (1 + np.exp(-draw.normal(mean, spread, count)))


def drawn(seed, images, share, planted, wrong=(-1.0, 1.0), right=(2.8, 0.9), like=None):
    """Scores of the data, which of them are wrong, and scores of planted images."""
    draw = np.random.default_rng(seed)
    is_wrong = draw.random(images) < share
    scores = np.where(is_wrong, scores_of(draw, images, *wrong), scores_of(draw, images, *right))
    return scores, is_wrong, scores_of(draw, planted, *(like or wrong))


SETTINGS = [
    {"images": 2700, "share": 0.1, "planted": 27},
    {"images": 2700, "share": 0.4, "planted": 27, "right": (1.7, 0.9)},
    {"images": 5000, "share": 0.02, "planted": 50},
    {"images": 50_000, "share": 0.1, "planted": 500, "wrong": (-0.6, 1.0), "right": (2.2, 0.8)},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s['images']}-{s['share']}")
def test_intervals_hold_as_often_as_they_say(setting):
    near, wrong_held, first_held = 0, 0, 0
    for seed in range(20):
        scores, is_wrong, planted = drawn(seed, **setting)
        found, ordered = estimate(scores, planted, seed=seed), is_wrong[np.argsort(scores)]
        near += abs(found.wrong.value / is_wrong.sum() - 1) <= 0.25
        wrong_held += found.wrong.low <= is_wrong.sum() <= found.wrong.high
        for n in (round(found.wrong.value / 2), round(found.wrong.value)):
            told = found.precision(n)
            first_held += told.low <= ordered[:n].mean() <= told.high
    assert near >= 17
    assert wrong_held >= 18
    assert first_held >= 36  # of 40


def test_wrong_labels_harder_to_see_than_planted_ones_are_still_counted():
    near = 0
    for seed in range(20):
        scores, is_wrong, planted = drawn(seed, 2700, 0.1, 54, like=(-1.6, 1.0))
        near += abs(estimate(scores, planted, seed=seed).wrong.value / is_wrong.sum() - 1) <= 0.25
    assert near >= 17


def test_an_interval_is_no_wider_than_need_be():
    scores, is_wrong, planted = drawn(0, 50_000, 0.05, 500, wrong=(-3, 1), right=(3.5, 0.8))
    found = estimate(scores, planted, unlike=0.3)
    assert found.wrong.high - found.wrong.low < 0.1 * is_wrong.sum()
    told = found.precision(1000)
    assert told.low > 0.97


def test_the_precision_falls_to_the_share_of_wrong_labels_and_is_the_same_again():
    scores, is_wrong, planted = drawn(1, 2700, 0.1, 54)
    found = estimate(scores, planted)
    precisions = [found.precision(n).value for n in (50, 100, 200, 300, 500, 1000, 2700)]
    assert precisions == sorted(precisions, reverse=True)
    assert precisions[-1] == pytest.approx(is_wrong.mean(), rel=0.25)
    assert found.precision(300) == estimate(scores, planted).precision(300)


def test_few_planted_images_tell_nothing():
    scores, _, planted = drawn(0, 500, 0.1, FEWEST - 1)
    assert estimate(scores, planted) is None
    assert estimate(scores[:0], np.full(50, 0.2)) is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_and_all_wrong_labels_end_in_a_number(share):
    scores, is_wrong, planted = drawn(2, 1000, share, 30)
    found = estimate(scores, planted)
    assert found.wrong.low <= is_wrong.sum() <= found.wrong.high + 25
    assert 0 <= found.precision(1).value <= 1
    assert estimate(np.full(100, 0.5), np.full(20, 0.5)) is not None


def test_what_cannot_be_told_from_right_labels_is_not_said_to_be_none():
    right = np.linspace(0.9, 0.999, 300)
    found = estimate(right, np.full(20, 0.995))  # a network that has learned wrong labels by heart
    assert found.wrong.high > 30


def test_images_that_look_like_another_class_beyond_the_number_are_told():
    draw = np.random.default_rng(0)
    wrong = scores_of(draw, 800, -0.4, 0.4)  # learned by heart in part: never as low as a flip
    found = estimate(np.concatenate([wrong, scores_of(draw, 1900, 1.2, 0.7)]), scores_of(draw, 27, -3.2, 0.8))
    assert found.wrong.high < 100
    assert 700 < found.unexplained < 1000
    for setting in SETTINGS:
        scores, _, planted = drawn(1, **setting)
        assert estimate(scores, planted).unexplained == 0


@pytest.mark.parametrize("right_share", [0.1, 0.9])
def test_of_classes_that_were_not_learned_any_share_may_be_right(right_share):
    """Half of ten classes with 17 images each, all of which look like another class."""
    wrong_held, first_held, blind_held = 0, 0, 0
    for seed in range(20):
        scores, is_wrong, planted = drawn(seed, 1300, 0.05, 27)
        draw = np.random.default_rng([seed, 7])
        labels = np.concatenate([draw.integers(5, size=1300), np.repeat(np.arange(5, 10), 17)])
        scores = np.concatenate([scores, scores_of(draw, 85, -1.0, 1.0)])
        is_wrong = np.concatenate([is_wrong, draw.random(85) >= right_share])
        found, ordered = estimate(scores, planted, labels=labels, seed=seed), is_wrong[np.argsort(scores)]
        assert found.unlearned.labels == (5, 6, 7, 8, 9)
        wrong_held += found.wrong.low <= is_wrong.sum() <= found.wrong.high
        told = found.precision(80)
        first_held += told.low <= ordered[:80].mean() <= told.high
        blind = estimate(scores, planted, seed=seed).precision(80)
        blind_held += blind.low <= ordered[:80].mean() <= blind.high
    assert wrong_held >= 18
    assert first_held >= 18
    assert right_share < 0.5 or blind_held < 10  # the intervals of who does not know of the classes


def test_labels_of_classes_that_were_learned_change_nothing():
    scores, _, planted = drawn(3, **SETTINGS[0])
    labels = np.random.default_rng(3).integers(10, size=len(scores))
    found, without = estimate(scores, planted, labels=labels), estimate(scores, planted)
    assert found.unlearned.labels == ()
    assert (found.wrong, found.precision(200)) == (without.wrong, without.precision(200))

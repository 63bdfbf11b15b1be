"""Rules of the distortion protocol, each as a property: what is kept, what becomes wrong, and what it depends on."""

from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.data.distortion import KINDS, Distortion, class_rates, distorted

counts = st.lists(st.integers(0, 40), min_size=2, max_size=7).filter(lambda sizes: sum(sizes) > 0)
shares = st.integers(0, 20).map(lambda n: n / 20)
seeds = st.integers(0, 2**32)
quick = settings(max_examples=40)


def labelled(sizes):
    """Labels of all images, mixed, and the ids of those that are trained on: two in three."""
    labels = np.random.default_rng(len(sizes)).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return labels, np.flatnonzero(np.arange(len(labels)) % 3 != 1)


def confusion_of(classes):
    matrix = np.random.default_rng(classes).integers(1, 9, (classes, classes)).astype(float)
    return matrix + np.eye(classes) * 50


def draw(labels, train, classes, **values):
    return distorted(labels, train, classes, Distortion(**values), confusion_of(classes))


def test_labels_are_those_that_earlier_versions_drew():
    labels, ids = np.arange(40) % 7, np.arange(3, 37)
    found = draw(labels, ids, 7, noise=0.3, seed=5)
    assert found.ids.tolist() == [5, 14, 16, 17, 20, 25, 28, 32, 34, 36]
    assert found.labels.tolist() == [4, 1, 6, 0, 3, 3, 3, 3, 0, 5]
    found = draw(labels, ids, 7, noise=0.25, kind="pairwise", seed=5)
    assert found.ids.tolist() == [5, 16, 17, 20, 28, 32, 34, 36]
    assert found.labels.tolist() == [6, 3, 4, 0, 1, 5, 0, 2]


@quick
@given(counts, shares.filter(bool), seeds)
def test_a_share_is_kept_and_a_smaller_share_is_part_of_it(sizes, share, seed):
    labels, train = labelled(sizes)
    kept = draw(labels, train, len(sizes), subsample=share, seed=seed).train
    assert len(kept) == (max(1, round(share * len(train))) if share < 1 else len(train))
    assert set(kept) <= set(train)
    fewer = draw(labels, train, len(sizes), subsample=share / 2, seed=seed).train
    assert set(fewer) <= set(kept)


@quick
@given(counts, st.integers(1, 60), seeds)
def test_the_second_half_of_the_classes_shares_what_the_first_leaves_it(sizes, imbalance, seed):
    labels, train = labelled(sizes)
    half = len(sizes) // 2
    kept = draw(labels, train, len(sizes), imbalance=imbalance, seed=seed).train
    common, rare = train[labels[train] < half], train[labels[train] >= half]
    assert set(common) <= set(kept)
    found = int((labels[kept] >= half).sum())
    assert found == (len(rare) if imbalance == 1 else min(len(rare), floor(len(common) / imbalance)))
    fewer = draw(labels, train, len(sizes), imbalance=imbalance + 3, seed=seed).train
    assert set(fewer) <= set(kept)


@quick
@given(counts, shares, seeds, st.sampled_from(KINDS))
def test_wrong_labels_are_wrong_and_of_training_images(sizes, share, seed, kind):
    labels, train = labelled(sizes)
    found = draw(labels, train, len(sizes), imbalance=3, noise=share, kind=kind, seed=seed)
    assert set(found.ids) <= set(found.train) <= set(train)
    assert (np.diff(found.ids) > 0).all()
    assert (found.labels != labels[found.ids]).all()
    assert ((found.labels >= 0) & (found.labels < len(sizes))).all()
    if kind in ("uniform", "pairwise", "confusion"):
        assert len(found.ids) == round(share * len(found.train))
    if kind == "pairwise":
        assert (found.labels == (labels[found.ids] + 1) % len(sizes)).all()
    if kind == "classwise":
        there, wrong = (np.bincount(labels[ids], minlength=len(sizes)) for ids in (found.train, found.ids))
        rates = class_rates(len(sizes), Distortion(noise=share, kind=kind, seed=seed)).tolist()
        assert wrong.tolist() == [round(r * n) for r, n in zip(rates, there.tolist(), strict=True)]


@quick
@given(counts, shares, seeds, st.sampled_from(KINDS))
def test_a_draw_depends_on_seed_and_images_alone(sizes, share, seed, kind):
    labels, train = labelled(sizes)
    settings = {"subsample": 0.8, "imbalance": 2, "noise": share, "kind": kind}
    one = draw(labels, train, len(sizes), **settings, seed=seed)
    again = draw(labels, train[::-1], len(sizes), **settings, seed=seed)  # in another order
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    less = draw(labels, train, len(sizes), **settings | {"noise": share / 2}, seed=seed)
    assert set(less.ids) <= set(one.ids) or kind == "classwise"


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_draws_others(kind):
    labels, train = labelled([30, 30, 30, 30])
    one, two = (draw(labels, train, 4, imbalance=2, noise=0.5, kind=kind, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.train, two.train)
    assert not np.array_equal(one.ids, two.ids)


def test_uniform_over_all_classes_spares_one_in_c():
    labels = np.arange(20_000) % 4
    found = draw(labels, np.arange(20_000), 4, noise=0.4, kind="uniform_all", seed=1)
    assert len(found.ids) / 20_000 == pytest.approx(0.4 * (1 - 1 / 4), abs=0.01)
    shares = np.bincount((found.labels - labels[found.ids]) % 4, minlength=4) / len(found.ids)
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.02)


def test_rates_of_classes_lie_evenly_around_the_noise():
    for noise in (0.1, 0.5, 0.8):
        found = class_rates(6, Distortion(noise=noise, kind="classwise", seed=2))
        spread = min(noise, 1 - noise)
        assert np.sort(found) == pytest.approx(np.linspace(noise - spread, noise + spread, 6))
    others = class_rates(6, Distortion(noise=0.1, kind="classwise", seed=3))
    assert not np.array_equal(np.argsort(others), np.argsort(found))


def test_confusion_is_repeated_in_its_proportions():
    matrix = np.array([[90, 9, 1], [0, 100, 0], [2, 2, 96]], dtype=float)
    labels = np.arange(30_000) % 3
    found = distorted(labels, np.arange(30_000), 3, Distortion(noise=0.05, kind="confusion"), matrix)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (labels[found.ids], found.labels), 1)
    assert pairs.sum() == 1500
    assert pairs[1].tolist() == [0, 0, 0]  # a class that is never mistaken
    assert pairs[0, 1] / pairs[0].sum() == pytest.approx(0.9, abs=0.03)
    assert pairs[2, 0] / pairs[2].sum() == pytest.approx(0.5, abs=0.07)
    assert pairs[0].sum() / pairs[2].sum() == pytest.approx(10 / 4, rel=0.15)
    with pytest.raises(ValueError, match="only 20000 images are of a class that is ever mistaken"):
        distorted(labels, np.arange(30_000), 3, Distortion(noise=0.9, kind="confusion"), matrix)


def test_confusion_needs_its_matrix():
    with pytest.raises(ValueError, match="needs a matrix of 2 x 2 counts, found none"):
        distorted(np.array([0, 1]), np.arange(2), 2, Distortion(noise=0.5, kind="confusion"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"subsample": 0}, r"subsample: .* \(0, 1\], found 0"),
        ({"imbalance": 0.5}, "imbalance: .* 1 or more, found 0.5"),
        ({"imbalance": float("nan")}, "imbalance: .* found nan"),
        ({"noise": 1.1}, r"noise: .* \[0, 1\], found 1.1"),
        ({"kind": "pair"}, "kind: must be one of uniform, .* found 'pair'"),
    ],
)
def test_numbers_out_of_range_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        Distortion(**values)

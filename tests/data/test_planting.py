"""Labels flipped on purpose: how many, which way, and the same whoever asks."""

import numpy as np
import pytest

from fastaug.data.planting import planted_labels
from fastaug.errors import DataError

IDS = np.arange(2, 4002)
LABELS = np.arange(4002) % 4


def test_a_share_is_flipped_to_any_other_class_alike():
    flipped, planted = planted_labels(LABELS, IDS, 4, share=0.25, seed=0)
    assert len(planted.ids) == 1000
    assert np.array_equal(np.flatnonzero(flipped != LABELS), planted.ids)
    assert np.array_equal(LABELS[planted.ids], planted.given)
    counts = np.zeros((4, 4))
    np.add.at(counts, (planted.given, flipped[planted.ids]), 1)
    assert counts[~np.eye(4, dtype=bool)].min() > 55  # of 83 expected
    assert counts.diagonal().sum() == 0


def test_a_confusion_says_which_classes_are_flipped_and_to_which():
    confusion = np.array([[9.0, 30, 10, 0], [0, 9, 0, 0], [0, 0, 9, 60], [0, 0, 0, 9]])
    flipped, planted = planted_labels(LABELS, IDS, 4, share=0.1, seed=1, confusion=confusion)
    counts = np.zeros((4, 4))
    np.add.at(counts, (planted.given, flipped[planted.ids]), 1)
    assert counts.sum() == 400
    assert not counts[(confusion == 0) | np.eye(4, dtype=bool)].any()
    assert np.allclose(counts[[0, 0, 2], [1, 2, 3]] / 400, [0.3, 0.1, 0.6], atol=0.06)


def test_flips_are_the_same_again_others_under_another_seed_and_few_where_the_confusion_has_few():
    one, two, other = (planted_labels(LABELS, IDS, 4, share=0.1, seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    rare = np.zeros(4002, dtype=np.int64)
    rare[IDS[:3]] = 1
    only = np.array([[0.0, 0.0], [5.0, 0.0]])
    _, planted = planted_labels(rare, IDS, 2, share=0.1, seed=0, confusion=only)
    assert sorted(planted.ids) == sorted(IDS[:3])  # no more images of the class that is mistaken


def test_one_class_has_no_other():
    with pytest.raises(DataError, match=r"run\.plant: there is no other class"):
        planted_labels(np.zeros(30, dtype=np.int64), np.arange(30), 1, share=0.1, seed=0)


def test_many_classes_need_no_table_of_pairs():
    classes = 300_000  # whose pairs would take 720 GB
    labels = np.arange(600_000) % classes
    flipped, planted = planted_labels(labels, np.arange(600_000), classes, share=0.01, seed=0)
    assert len(planted.ids) == 6000
    assert np.array_equal(np.flatnonzero(flipped != labels), planted.ids)
    assert flipped.min() >= 0
    assert flipped.max() < classes

"""A transformation between two splits is found from what a network makes of their images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastaug.augment.augmenter import Augmenter
from fastaug.batch import Batch
from fastaug.evaluation.shift_estimate import (
    IMAGES,
    OF_A_CLASS,
    Mismatch,
    Side,
    closest,
    compared_ids,
    in_common,
    side_of,
)

CLASSES, SIDE = 3, 24


def smooth(count, seed):
    draw = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 5, 5, generator=draw), (SIDE, SIDE), mode="bicubic").clamp(0, 1)


def pixels(images):
    return F.avg_pool2d(images, 3).flatten(1)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        ("affine", {"rotate": 20.0, "scale_x": math.log(1.3), "scale_y": math.log(1.2), "translate_x": 0.1}),
        ("affine_color", {"rotate": -30.0, "brightness": -0.3, "contrast": 0.2, "saturation": -0.4}),
    ],
)
def test_the_amounts_that_one_side_was_changed_by_are_found(kind, plain):
    net = Augmenter(kind, fill=(0.3, 0.3, 0.3))
    shares = torch.tensor([plain.get(name, 0.0) for name in net.names]) / net.reach

    def change(images, at):
        return net.apply(images, (net.reach * at).expand(len(images), -1))

    images, labels = smooth(30, 0), torch.arange(30) % CLASSES
    mismatch = Mismatch(Side(images, labels), Side(change(images, shares), labels), pixels, change)
    found = closest(mismatch, len(shares), seed=0)
    torch.testing.assert_close(found, shares, rtol=0, atol=2e-3)
    assert mismatch(found).norm() < 0.01 < 0.2 < mismatch(torch.zeros_like(found)).norm()


def test_what_chance_leaves_is_what_sides_that_are_drawn_alike_differ_by():
    draw, counts = torch.Generator().manual_seed(0), (20, 40)
    sides = []
    for count in counts:
        labels = torch.arange(CLASSES).repeat_interleave(count)
        images = labels[:, None, None, None] + torch.randn(len(labels), 1, 20, 20, generator=draw)
        sides.append(Side(images, labels))
    mismatch = Mismatch(*sides, lambda images: images.flatten(1), lambda images, _: images)
    assert mismatch.chance == pytest.approx((1 / 20 + 1 / 40) ** 0.5)
    assert mismatch(torch.zeros(1)).norm().item() == pytest.approx(mismatch.chance, rel=0.05)


def test_classes_without_two_images_on_both_sides_do_not_count():
    one = Side(torch.arange(7.0), torch.tensor([0, 0, 1, 1, 4, 4, 5]))
    other = Side(torch.arange(8.0), torch.tensor([1, 1, 2, 2, 4, 4, 5, 5]))
    first, second = in_common(one, other)
    assert first.images.tolist() == [2, 3, 4, 5]
    assert second.images.tolist() == [0, 1, 4, 5]
    assert first.labels.tolist() == second.labels.tolist() == [0, 0, 1, 1]
    assert in_common(one, Side(torch.arange(2.0), torch.tensor([5, 5]))) is None


def test_an_amount_that_changes_nothing_is_left_at_zero():
    aim = torch.tensor([0.3, 0.0, -0.2])

    def residuals(place):
        return (place - aim)[[0, 2]] + torch.tensor([0.0, 1e-3])

    found = closest(residuals, 3, seed=0)
    assert found[1] == 0
    torch.testing.assert_close(found, aim, rtol=0, atol=2e-3)


def test_features_that_never_vary_do_not_drown_the_others():
    images = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    images[:, :, 0, 0] = 0.5
    other = images.clone()
    other[:, :, 0, 0] += 1e-4
    labels = torch.zeros(8, dtype=torch.int64)
    mismatch = Mismatch(Side(images, labels), Side(other, labels), lambda x: x.flatten(1), lambda x, _: x)
    assert mismatch(torch.zeros(1)).norm() < 0.01


@pytest.mark.parametrize(("target", "bend"), [((0.4, -0.3), 0.0), ((-0.5, 0.45), 0.15), ((0.0, 0.0), 0.1)])
def test_the_least_squares_are_found_past_other_low_places(target, bend):
    aim = torch.tensor(target)

    def residuals(place):
        away = place - aim
        return torch.cat([away, bend * (1 - torch.cos(20 * away))])

    torch.testing.assert_close(closest(residuals, 2, seed=3), aim, rtol=0, atol=2e-3)


def test_as_many_images_of_the_same_classes_are_compared():
    labels = np.repeat(np.arange(4), 400)
    one, other = np.arange(0, 1600, 2), np.arange(1, 1200, 2)  # class 3 is in the first alone
    first, second = compared_ids(labels, one, other, seed=0)
    assert set(first) <= set(one)
    assert set(second) <= set(other)
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [IMAGES // 3] * 3
    again = compared_ids(labels, one, other, seed=0)
    assert np.array_equal(first, again[0])
    assert not np.array_equal(first, compared_ids(labels, one, other, seed=1)[0])


def test_of_many_classes_those_with_most_images_are_compared():
    sizes = np.where(np.arange(100) % 2, OF_A_CLASS, 3)
    labels = np.concatenate([np.repeat(np.arange(100), sizes)] * 2)
    half = len(labels) // 2
    few = np.arange(half)[np.unique(labels[:half], return_index=True)[1]]
    assert not len(compared_ids(labels, np.arange(half, 2 * half), few, seed=0)[0])  # one of each class
    many, three = compared_ids(labels, np.arange(half), half + np.flatnonzero(labels[half:] % 2 == 0), seed=0)
    assert len(many) == len(three) == 150
    first, second = compared_ids(labels, np.arange(half), np.arange(half, 2 * half), seed=0)
    assert len(second) == IMAGES
    assert set(labels[second] % 2) == set(labels[first] % 2) == {1}
    assert all(len(side) == 0 for side in compared_ids(labels, np.arange(0), np.arange(half), seed=0))


def test_a_side_is_all_images_of_its_batches():
    ids = torch.arange(4)
    whole = Batch(torch.arange(4 * 12).view(4, 2, 2, 3).byte(), ids % 2, ids, ids)
    batches = [Batch(*(field[part] for field in whole)) for part in (slice(3), slice(3, 4))]
    side = side_of(batches, lambda batch: batch.images.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(side.images, whole.images.permute(0, 3, 1, 2) / 255)
    assert side.labels.tolist() == [0, 1, 0, 1]

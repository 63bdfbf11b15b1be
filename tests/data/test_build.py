"""What tells whether a run continues on the data it was begun on."""

import hashlib
from dataclasses import replace

import pytest

from fastaug.data.build import DataParts, synthetic_parts
from fastaug.data.index import load_index
from fastaug.data.splits import make_splits


@pytest.fixture
def root(jpeg_folder):
    """2 classes in the folders train, meta and val."""
    return jpeg_folder(splits=("train", "meta", "val"))


def parts(root) -> DataParts:
    """The data as they are now."""
    index = load_index(root, threads=1)
    return DataParts(index.classes, make_splits(index, seed=0), index, index.labels)


def copied(root, name, new):
    (root / new).write_bytes((root / name).read_bytes())


def test_an_image_that_is_only_evaluated_may_come_or_go(root):
    before = parts(root)
    copied(root, "val/class0/000.jpg", "val/class0/0001.jpg")
    copied(root, "val/class0/000.jpg", "val/class0/0002.jpg")
    (root / "val/class1/003.jpg").unlink()
    after = parts(root)
    assert len(after.index.labels) == len(before.index.labels) + 1
    for learns in (False, True):
        assert after.trains_as(before.fingerprint(learns=learns), learns=learns)


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("train/class0/000.jpg", "train/class1/zzz.jpg"),  # one more to train on
        ("meta/class0/000.jpg", "meta/class0/0001.jpg"),  # "meta" is before "train": it moves the ids
    ],
)
def test_what_changes_training_is_seen(root, name, new):
    before = parts(root).fingerprint()
    copied(root, name, new)
    assert not parts(root).trains_as(before)


def test_a_renamed_image_is_seen(root):
    before = parts(root).fingerprint()
    (root / "train/class0/000.jpg").rename(root / "train/class0/00x.jpg")
    assert not parts(root).trains_as(before)


def test_labels_count_and_the_meta_split_where_it_is_learned_from(root):
    given = parts(root)
    labels = given.index.labels.copy()
    labels[given.splits.train[0]] ^= 1
    assert not replace(given, index=replace(given.index, labels=labels)).trains_as(given.fingerprint())
    fewer = replace(given, splits=replace(given.splits, meta=given.splits.meta[1:]))
    assert fewer.trains_as(given.fingerprint())
    assert not fewer.trains_as(given.fingerprint(learns=True), learns=True)


def test_checkpoints_of_0_1_0_are_known(root):
    given = parts(root)
    digest = hashlib.sha256(given.splits.train.tobytes())
    digest.update(given.index.paths.blob)
    digest.update(given.index.labels.tobytes())
    assert given.trains_as(digest.hexdigest(), learns=True)
    copied(root, "val/class0/000.jpg", "val/class0/0001.jpg")
    assert not parts(root).trains_as(digest.hexdigest(), learns=True)  # it covered all images: there is no telling


def test_synthetic_data_have_a_fingerprint():
    one, other = synthetic_parts(8, 2, 2), synthetic_parts(9, 2, 2)
    assert one.trains_as(one.fingerprint())
    assert not other.trains_as(one.fingerprint())

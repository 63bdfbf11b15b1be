"""Images that are nearly the same: found across classes and splits, and only there."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fastaug.data.build import DataParts
from fastaug.data.index import load_index
from fastaug.data.splits import make_splits
from fastaug.reports import near_duplicates as duplicates
from fastaug.reports.thumbnails import thumbnail


def parts_of(root):
    index = load_index(root, exif="ignore")
    splits = make_splits(index, seed=0, meta=0.0, select=0.0, test=0.0, files=None)
    return DataParts(index.classes, splits, index, index.labels)


def names(parts, pairs):
    root = str(parts.index.root)
    return [tuple(parts.name_of(i).removeprefix(root + "/") for i in pair[:2]) for pair in pairs]


def test_copies_in_other_classes_and_splits_are_found(jpeg_folder):
    root = jpeg_folder(classes=2, images=6, splits=("train", "val"))
    shutil.copy(root / "train/class0/001.jpg", root / "train/class1/copy.jpg")
    with Image.open(root / "train/class1/002.jpg") as picture:
        picture.resize((70, 60)).save(root / "val/class1/smaller.jpg", quality=70)
    shutil.copy(root / "train/class0/003.jpg", root / "train/class0/same.jpg")  # of one class and split: no harm
    parts = parts_of(root)
    found = names(parts, duplicates.near_duplicates(parts))
    assert found[0] == ("train/class0/001.jpg", "train/class1/copy.jpg")
    assert set(found[1:]) == {("train/class1/002.jpg", "val/class1/smaller.jpg")}


def test_a_file_that_another_program_would_have_to_draw_is_not_opened(jpeg_folder):
    root = jpeg_folder(classes=2, images=3, splits=("train", "val"))
    (root / "train/class0/drawing.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EOF\n")
    parts = parts_of(root)
    (damaged,) = parts.index.reasons
    assert "cannot identify image file" in thumbnail(parts.index, damaged).problem
    parts.splits.train[:] = damaged
    assert duplicates.near_duplicates(parts) == []


def test_blocks_find_what_one_product_does(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = sorted(duplicates.alike_pairs(rows, 0.95))
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    assert [pair[:2] for pair in sorted(duplicates.alike_pairs(rows, 0.95))] == [pair[:2] for pair in whole]
    assert len(whole) > 10


def test_too_many_images_are_refused_by_their_number(jpeg_folder, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST", 20)
    with pytest.raises(ValueError, match="among 24 images, only up to 20"):
        duplicates.near_duplicates(parts_of(jpeg_folder(classes=2, images=6, splits=("train", "val"))))

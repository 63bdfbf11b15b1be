"""Tiny-ImageNet (Stanford's CS231n): its images as published, val/val_annotations.txt, classes named by words.

train/WNID/images/*.JPEG, val/images/*.JPEG; wnids.txt has the 200 classes, words.txt what WordNet ids mean. A class is
named by its first word, with its id behind where another class has the same. The test images have no labels and are
not read: val is the test split.
"""

import os
from collections import Counter
from pathlib import Path

from fastaug.data.class_names import some
from fastaug.data.folders import EXTENSIONS
from fastaug.data.packed.records import OWN_FILE, Record
from fastaug.data.sources.published import listed
from fastaug.errors import DataError

ANNOTATIONS = "val/val_annotations.txt"
AGAIN = "unpack the archive again"


def images_of(root: Path) -> list[Record]:
    """The images of train and val; DataError for what is not there."""
    needed = ("wnids.txt", "words.txt", "train", "val")
    if missing := [name for name in needed if not (root / name).exists()]:
        text = f"data.root: tiny_imagenet:{root} lacks {some(missing)}"
        raise DataError(
            f"{text}; name the folder tiny-imagenet-200 of {listed('tiny_imagenet', ['tiny-imagenet-200.zip'])}"
        )
    names = _names(root)
    if lost := [wnid for wnid in names if not (root / "train" / wnid).is_dir()]:
        raise DataError(f"data.root: {root}/train lacks {some(lost)} of wnids.txt; {AGAIN}")
    records = [record for wnid, name in names.items() for record in _in_class(root, f"train/{wnid}", name, "train")]
    if (root / ANNOTATIONS).is_file():
        return records + _annotated(root, names)
    return records + [record for wnid, name in names.items() for record in _in_class(root, f"val/{wnid}", name, "val")]


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.root: {path} cannot be read ({error}); {AGAIN}") from error


def _names(root: Path) -> dict[str, str]:
    """The name of each class by its WordNet id."""
    words = {line[0]: line[1].split(",")[0] for line in _lines(root / "words.txt") if len(line) == 2}
    wnids = [line[0].strip() for line in _lines(root / "wnids.txt")]
    if unknown := [wnid for wnid in wnids if wnid not in words]:
        raise DataError(f"data.root: {root}/words.txt has no words for {some(unknown)}; {AGAIN}")
    same = Counter(words[wnid] for wnid in wnids)
    return {wnid: words[wnid] if same[words[wnid]] == 1 else f"{words[wnid]} ({wnid})" for wnid in sorted(wnids)}


def _in_class(root: Path, folder: str, label: str, split: str) -> list[Record]:
    """The images of a class's folder, or of images/ in it."""
    place = f"{folder}/images" if (root / folder / "images").is_dir() else folder
    try:
        names = sorted(os.listdir(root / place))
    except OSError as error:
        raise DataError(f"data.root: {root / place} cannot be listed ({error.strerror}); {AGAIN}") from error
    found = (name for name in names if os.fsencode(name).lower().endswith(EXTENSIONS))
    return [Record(f"{place}/{name}", label, split, OWN_FILE, 0, 0) for name in found]


def _annotated(root: Path, names: dict[str, str]) -> list[Record]:
    """The images of val by the list of their classes; DataError where a line has another, or an image has no line."""
    lines = _lines(root / ANNOTATIONS)
    if odd := [line[0] for line in lines if len(line) < 2 or line[1] not in names]:
        raise DataError(f"data.root: {root / ANNOTATIONS}: no class of wnids.txt in the lines of {some(odd)}; {AGAIN}")
    there = set(os.listdir(root / "val" / "images")) if (root / "val" / "images").is_dir() else set()
    if lost := there ^ {line[0] for line in lines}:
        text = f"data.root: {root}/val/images and {ANNOTATIONS} differ in {len(lost)} images: {some(lost)}"
        raise DataError(f"{text}; {AGAIN}")
    return [Record(f"val/images/{line[0]}", names[line[1]], "val", OWN_FILE, 0, 0) for line in lines]

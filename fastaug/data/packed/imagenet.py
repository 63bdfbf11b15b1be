"""ImageNet (ILSVRC 2012): folders or the tars as published, and the labels of its validation images.

train/ with a folder for each class, named by WordNet ids, or ILSVRC2012_img_train.tar; val/ with such folders or with
all images in one, or ILSVRC2012_img_val.tar. Images of one folder or tar are labelled by the devkit (its archive, or
its folder data/), else by imagenet_2012_validation_synset_labels.txt: an id a line, in the order of the images'
numbers. Nothing is unpacked: images in the tars within the tar of the training images are read where they lie.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastaug.data.class_names import shown
from fastaug.data.folders import EXTENSIONS
from fastaug.data.packed.records import OWN_FILE, Container, Contents, Found, Keys, Record
from fastaug.data.packed.tars import members
from fastaug.errors import DataError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META, SYNSETS = (
    "ILSVRC2012_validation_ground_truth.txt",
    "meta.mat",
    "imagenet_2012_validation_synset_labels.txt",
)
_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r".*_(\d+)\.[A-Za-z]+")
_BROKEN = (OSError, EOFError, ValueError, TypeError, LookupError, NotImplementedError, tarfile.TarError)


def find(place: str) -> Found:
    """The tars that are read, one for each split that has no folder, and beside them what says labels.

    DataError where a split has neither.
    """
    root = Path(place).expanduser().absolute()
    files = [Container(root / name, name, split) for split, name in ARCHIVES.items() if not (root / split).is_dir()]
    if gone := next((file for file in files if not file.path.is_file()), None):
        raise DataError(f"data.root: imagenet:{root} lacks {gone.split}/ or {gone.name}; put it there")
    folders = [
        path for split in ARCHIVES if (root / split).is_dir() for path in (root / split, *_classes(root / split))
    ]
    return Found(root, tuple(files), (*_sources(root), *folders))


def read(found: Found, keys: Keys) -> Contents:
    """The images of train and val in this order, each as the tar or the folder has them: those by path."""
    records: list[Record] = []
    numbers = {file.split: number for number, file in enumerate(found.files)}
    for split in ARCHIVES:
        if split in numbers:
            records += _in_tar(found.files[numbers[split]], numbers[split], keys.labelled)
        else:
            records += in_folder(found.root, split, keys.labelled)
    return Contents(records, None, "the names of folders or tars, or the devkit")


def in_folder(root: Path, split: str, labelled: bool = True) -> list[Record]:
    """The images below the folder of a split, by path, each a file of its own; DataError where one has no label.

    Without `labelled` those of one folder get none, and need none.
    """
    top = root / split
    classes = _classes(top)
    records = [
        Record(f"{split}/{folder.name}/{name}", folder.name, split, OWN_FILE, 0, 0)
        for folder in classes
        for name in sorted(os.listdir(folder))
        if os.fsencode(name).lower().endswith(EXTENSIONS)
    ]
    if classes:
        return records
    names = sorted(name for name in os.listdir(top) if os.fsencode(name).lower().endswith(EXTENSIONS))
    if not names or split == "train":
        raise DataError(f"data.root: {top} holds no folders named by WordNet ids (n01440764, ...); unpack it again")
    labels = _Labels(root) if labelled else None
    return [Record(f"{split}/{name}", labels.of(name) if labels else None, split, OWN_FILE, 0, 0) for name in names]


def _classes(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if _WNID.fullmatch(path.name) and path.is_dir())


def _in_tar(file: Container, number: int, labelled: bool) -> Iterator[Record]:
    """The images of a tar of images, or of one of tars that are named after classes."""
    of_images = file.split != "train"
    labels = _Labels(file.path.parent) if of_images and labelled else None
    for outer in members(file.path):
        if of_images:
            known = labels.of(outer.name) if labels else None
            yield Record(f"{file.name}/{outer.name}", known, file.split, number, *outer[1:])
            continue
        label = os.path.basename(outer.name).removesuffix(".tar")
        if not _WNID.fullmatch(label):
            text = f"data.root: {file.path}: {shown(outer.name)} is no tar of a class (n01440764.tar, ...)"
            raise DataError(f"{text}; download it again")
        for inner in members(file.path, outer.offset, outer.offset + outer.length):
            yield Record(f"{file.name}/{label}/{inner.name}", label, file.split, number, *inner[1:])


class _Labels:
    """The WordNet ids of the validation images by their number, which counts from 1."""

    def __init__(self, root: Path) -> None:
        self._source, self._ids = _labels_in(root)

    def of(self, name: str) -> str:
        """The id of the image in a file of that name; DataError where the name has no number, or too large a one."""
        found = _NUMBER.fullmatch(os.path.basename(name))
        if found is None or not 1 <= int(found[1]) <= len(self._ids):
            text = (
                f"data.root: {shown(name)} has no number from 1 to {len(self._ids)}, of which {self._source} has labels"
            )
            raise DataError(f"{text}; is it a file of this set, and are both whole?")
        return self._ids[int(found[1]) - 1]


def _sources(root: Path) -> list[Path]:
    """Those files that may say labels, which are there; the first that suffices is read."""
    folders = [folder for folder in (root / DEVKIT / "data", root / "data", root) if (folder / TRUTH).is_file()]
    found = [folder / name for folder in folders[:1] for name in (TRUTH, META) if (folder / name).is_file()]
    archive = [path for path in (root / f"{DEVKIT}.tar.gz",) if path.is_file()]
    synsets = [path for path in (root / SYNSETS,) if path.is_file()]
    return found if len(found) == 2 else archive or synsets or found


def _labels_in(root: Path) -> tuple[Path, list[str]]:
    sources = _sources(root)
    if not sources or sources[-1].name == TRUTH:
        lacks = f" beside {sources[0]}: {META} is missing" if sources else f" in {root}"
        raise DataError(
            f"data.root: nothing says what the images of val are{lacks}; put there {DEVKIT}.tar.gz as published, or "
            f"{SYNSETS} with a WordNet id a line; or sort the images into val/n01440764/, ..."
        )
    try:
        if sources[0].name == SYNSETS:
            ids = sources[0].read_text().split()
            if not all(map(_WNID.fullmatch, ids)):
                raise ValueError("a line that is no WordNet id")
            return sources[0], ids
        truth, meta = [path.read_bytes() for path in sources] if len(sources) == 2 else _unpacked(sources[0])
        names = _names(meta)
        return sources[0], [names[int(line)] for line in truth.split()]
    except _BROKEN as error:
        raise DataError(f"data.root: {sources[0]} is broken ({error!r}); download it again") from error


def _unpacked(archive: Path) -> tuple[bytes, bytes]:
    with tarfile.open(archive) as opened:
        found = {os.path.basename(name): opened.extractfile(name) for name in opened.getnames() if "/data/" in name}
        truth, meta = found[TRUTH], found[META]
        if truth is None or meta is None:
            raise ValueError(f"{TRUTH} or {META} in it is no file")
        return truth.read(), meta.read()


def _names(meta: bytes) -> dict[int, str]:
    """The WordNet id of each number, by the table `synsets` of the devkit's MATLAB file."""
    from scipy.io import loadmat

    rows: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}

"""Files of a published array set in memory, from a folder or straight out of its archive, and what they hold."""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError

LARGEST = 2**29  # bytes of a file, unpacked; CIFAR-100's is the largest known, 155 MB
AGAIN = "download it again"
_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError)


class Part(NamedTuple):
    """A split of an array set: `images` [N, H, W] or [N, H, W, 3] uint8, `labels` [N] int64, in the source's order."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


class ArraySet(NamedTuple):
    """A published array set in memory. `classes`: folder names whose sorted order is the source's order of labels."""

    classes: tuple[str, ...]
    train: Part
    test: Part


@dataclass(frozen=True)
class Files:
    """The files of an array set in memory, by plain name; `place`: the folder or archive they come from."""

    place: Path
    contents: dict[str, bytes]

    def where(self, name: str) -> str:
        """A file as messages name it."""
        if self.place.is_dir():
            return str(on_disk(self.place, name) or self.place / name)
        return f"{self.place}, member {name}"


class Layout(NamedTuple):
    """A form in which a set is published: `files` in one of `folders` below a parent, or in `archive` ("": none)."""

    files: tuple[str, ...]
    folders: tuple[str, ...]
    archive: str
    parse: Callable[[Files], ArraySet]


def on_disk(folder: Path, name: str) -> Path | None:
    """The file, as it is or with .gz behind its name; None without either."""
    both = (folder / name, folder / f"{name}.gz")
    return next((path for path in both if os.path.isfile(path)), None)


def read_folder(folder: Path, names: Sequence[str]) -> Files:
    """The named files, unpacked where compressed; DataError for one that cannot be read."""
    contents = {}
    for name in names:
        path = on_disk(folder, name) or folder / name
        try:
            with open(path, "rb") as file:
                packed = file.read(2) == b"\x1f\x8b"  # the bytes tell, not the name: some browsers unpack silently
            with gzip.open(path) if packed else open(path, "rb") as opened:
                contents[name] = _limited(opened.read(LARGEST + 1), str(path))
        except _BROKEN as error:
            raise DataError(f"{path}: cannot be read to its end ({error}); {AGAIN}") from error
    return Files(folder, contents)


def read_archive(path: Path, names: Collection[str]) -> Files:
    """The members of a tar file that carry one of the names, read in memory; nothing is unpacked to disk."""
    contents = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if name in names and member.isfile() and (stream := archive.extractfile(member)):
                    contents[name] = _limited(stream.read(LARGEST + 1), f"{path}, member {name}")
    except _BROKEN as error:
        raise DataError(f"{path}: truncated or no tar file ({error}); {AGAIN}") from error
    return Files(path, contents)


def _limited(raw: bytes, where: str) -> bytes:
    if len(raw) > LARGEST:
        raise DataError(f"{where}: more than {LARGEST} bytes, no file of this set; replace it by the original")
    return raw


def class_folders(names: Sequence[str], where: str) -> tuple[str, ...]:
    """ "03_cat" for name 3: the number keeps the order of labels; other characters than letters and digits become _."""
    if len(names) < 2 or not all(names):
        raise DataError(f"{where}: lists {len(names)} class names, {sum(map(bool, names))} of them usable; {AGAIN}")
    width = max(2, len(str(len(names) - 1)))
    return tuple(f"{label:0{width}d}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)}" for label, name in enumerate(names))


def checked(images: npt.NDArray[np.uint8], labels: Sequence[int], classes: int, where: str) -> Part:
    """A part of as many images as labels, each label in [0, classes); DataError otherwise."""
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"{where}: {len(images)} images and {len(labels)} labels; both must be equal and above 0; {AGAIN}"
        )
    wrong = next(((row, label) for row, label in enumerate(labels) if not 0 <= label < classes), None)
    if wrong:
        raise DataError(f"{where}: label {wrong[1]} in row {wrong[0]} is outside [0, {classes}); {AGAIN}")
    return Part(images, np.asarray(labels, dtype=np.int64))

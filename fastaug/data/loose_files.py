"""Image files without labels, as a person names them: files and folders, in that order, as an index of its own."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastaug.data.class_names import shown, some
from fastaug.data.image_headers import screen_all, table_of
from fastaug.data.index import Folder, Index
from fastaug.data.listing import Listing
from fastaug.data.path_table import PathTable
from fastaug.errors import DataError


class Found(NamedTuple):
    """Absolute paths of image files, and how many other files the folders held, by ending."""

    paths: list[bytes]
    others: Counter[str]


def find_images(places: Iterable[Path], channels: int = 3) -> Found:
    """The files named in `places`, whatever their ending, and those below its folders that have one of an image.

    Those of a folder come sorted by path; names with a leading dot are left out. DataError for what is not there, and
    for a folder without an image. `channels`: that images have, which decides on endings.
    """
    found, endings = Found([], Counter()), Listing(channels=channels).endings()
    for place in places:
        if place.is_dir():
            paths = list(_below(os.fsencode(os.path.abspath(place)), found.others, endings))
            if not paths:
                others = f"; {told(found.others)} in it" if found.others else ""
                raise DataError(f"{shown(str(place))}: no image below this folder{others}; name one that holds images")
            found.paths.extend(sorted(paths))
        elif place.exists():
            found.paths.append(os.fsencode(os.path.abspath(place)))
        else:
            remedy = "name images, folders that hold some, or a packed set as KIND:PLACE (docs/data.md)"
            raise DataError(f"{shown(str(place))}: no such file or folder; {remedy}")
    return found


def _below(top: bytes, others: Counter[str], endings: tuple[bytes, ...]) -> Iterable[bytes]:
    """Images at any depth; links are followed, and a folder that is reached twice is read once."""
    seen: set[tuple[int, int]] = set()
    for folder, names, files in os.walk(top, onerror=_unlisted, followlinks=True):
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:
            names.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        names[:] = sorted(name for name in names if not name.startswith(b"."))
        for name in files:
            if name.startswith(b"."):
                continue
            if name.lower().endswith(endings):
                yield os.path.join(folder, name)
            else:
                others[os.fsdecode(os.path.splitext(name)[1].lower()) or "without ending"] += 1


def _unlisted(error: OSError) -> None:
    raise DataError(f"{error.filename!r} cannot be listed ({error.strerror}); repair it, or name other folders")


def told(others: Counter[str]) -> str:
    """Counts of files by ending as text."""
    return some(f"{count} {ending}" for ending, count in others.items())


def index_of(paths: Sequence[bytes], classes: tuple[str, ...], exif: str, threads: int, channels: int = 3) -> Index:
    """The index of the image files `paths`, ids in their order; labels are 0 and mean nothing, nothing is cached."""
    headers = table_of(screen_all(b"/", paths, exif, threads, "", channels), len(paths))
    return Index(
        root=Path("/"),
        classes=classes,
        paths=PathTable.of(list(paths)),
        labels=np.zeros(len(paths), np.int64),
        heights=headers.heights,
        widths=headers.widths,
        status=headers.status,
        folders=np.full(len(paths), Folder.TEST, np.uint8),
        reasons=headers.reasons,
        channels=channels,
    )

"""The listing of class folders: the images below a data root, their labels and roles, sorted by path.

Which folders are classes of which split: folders.py. A table may list images instead: image_table.py.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.class_map import ClassMap
from fastaug.data.class_names import some
from fastaug.data.folders import MAY_LACK, Folder, Walk, class_folders, classes_of, layout_of
from fastaug.data.path_table import PathTable
from fastaug.data.progress import tracked
from fastaug.errors import DataError

MANY = 1000  # class folders whose listing is worth a progress bar


class Rows(NamedTuple):
    """Images listed, sorted by path: `paths` [N] relative to the root, `labels` [N] and `folders` [N] of Folder."""

    paths: PathTable
    labels: npt.NDArray[np.int64]
    folders: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, rows: Sequence[tuple[bytes, int, int]]) -> "Rows":
        """Of (path, label, Folder) for each image, sorted."""
        paths, labels, folders = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(PathTable.of(paths), np.array(labels, np.int64), np.array(folders, np.uint8))


class ClassFolder(NamedTuple):
    """A folder that is a class of one split, or a part of one: path relative to the root, label and Folder."""

    path: bytes
    label: int
    folder: int


def images_in_folders(
    walk: Walk, level: str, names: ClassMap, threads: int = 1, progress: bool = False
) -> tuple[tuple[str, ...], Rows]:
    """Classes and all images; DataError for bad folders.

    `level`: "top" or "leaf", the folders that are classes. `names` gives them other names. Class folders are listed by
    `threads` threads, for a network's answers; with `progress` under a bar where they are many.
    """
    layout = layout_of(walk)
    folders = {split: class_folders(walk, split, level, names) for split in layout}
    names.check_met()
    classes = classes_of(walk, layout, folders)
    found = [
        ClassFolder(path, label, int(role))
        for split, role in layout.items()
        for label, name in enumerate(classes)
        for path in folders[split].get(name, [])  # meta and select may lack a class
    ]
    return classes, image_rows(walk, found, level == "top", threads, progress)


def image_rows(walk: Walk, folders: Sequence[ClassFolder], deep: bool, threads: int, progress: bool) -> Rows:
    """The images of all `folders`, where `deep` at any depth; DataError for folders without one."""
    text = f"index: listing {len(folders):,} class folders" if progress and len(folders) >= MANY else ""
    with ThreadPoolExecutor(threads) as pool:
        walks = pool.map(lambda folder: walk.apart(folder.path, deep), folders)
        found = list(tracked(walks, text, len(folders)))
    for own, _ in found:
        walk.watch |= own.watch
        walk.left_out.update(own.left_out)
    empty = {os.fsdecode(at.path): at.folder for at, (_, paths) in zip(folders, found, strict=True) if not paths}
    if empty:
        several = any(at.folder != Folder.ALL for at in folders)
        _refuse_empty(walk, empty, several)
    return _in_order([(paths, at.label, at.folder) for at, (_, paths) in zip(folders, found, strict=True)])


def _refuse_empty(walk: Walk, empty: dict[str, int], several: bool) -> None:
    """DataError that names the class folders in `empty`; `several`: there are several splits."""
    others = walk.others()
    everywhere = several and any(role not in MAY_LACK for role in empty.values())
    remedy = "remove the class from every split" if everywhere else "remove the folder"
    unread = f" (files that are not read: {others})" if others else ""
    raise DataError(f"{os.fsdecode(walk.root)}: no image in class folder {some(empty)}{unread}; add images or {remedy}")


def _in_order(parts: list[tuple[PathTable, int, int]]) -> Rows:
    """Sorted paths of folders, each with label and Folder, as rows sorted by path."""
    parts = sorted(parts, key=lambda part: part[0][0])
    if any(paths[len(paths) - 1] > after[0] for (paths, _, _), (after, _, _) in pairwise(parts)):
        # a class folder in another one: its images stand among those of the other
        return Rows.of(sorted((path, label, folder) for paths, label, folder in parts for path in paths))
    counts = [len(paths) for paths, _, _ in parts]
    labels = np.repeat(np.array([label for _, label, _ in parts], np.int64), counts)
    folders = np.repeat(np.array([folder for _, _, folder in parts], np.uint8), counts)
    return Rows(PathTable.joined([paths for paths, _, _ in parts]), labels, folders)

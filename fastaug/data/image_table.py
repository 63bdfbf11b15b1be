"""Image tables: files that list images with their labels and splits, in place of a layout of folders.

A file of `sheets.py` with the columns path, label and, if wanted, split, or those of `ALIASES`. Paths are relative to
data.root, else to the folder of the file. Labels are text or whole numbers; classes are those of the training rows, in
the order of their names, or of their numbers where all are numbers. Splits are named as folders are (folders.py); a
table without that column is one set, from which fractions are taken. Rows are sorted by path: their order in the file
has no meaning.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fastaug.data.class_map import ClassMap
from fastaug.data.class_names import some
from fastaug.data.folders import ROLES, Folder, split_of
from fastaug.data.sheets import Sheet, read_sheet
from fastaug.errors import DataError

KEY = "data.table"
ALIASES = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path"),
    "label": ("labels", "class", "class_name", "target", "category"),
    "split": ("set", "subset", "partition"),
}
_PLACE = re.compile(r"-?\d{1,18}")


def table_rows(file: Path, root: bytes, names: ClassMap) -> tuple[tuple[str, ...], list[tuple[bytes, int, int]]]:
    """Classes, and (path relative to `root`, label, Folder) of all images, sorted by path. DataError names lines."""
    sheet = read_sheet(file, KEY)
    paths = paths_of(sheet, root)
    labels = sheet.column("label", ALIASES["label"])
    assert labels is not None
    missing = [(line, "") for label, line in zip(labels, sheet.lines, strict=True) if not label]
    sheet.refuse(missing, "no label", "fill it in, or remove the rows")
    classes, roles = [names.of(label) for label in labels], roles_of(sheet)
    names.check_met()
    for label, name in zip(labels, classes, strict=True):
        names.left_out.update([label] if not name else [])
    known = classes_in_order({name for name, role in zip(classes, roles, strict=True) if name and role <= Folder.TRAIN})
    if len(known) < 2:
        found = f"classes of the training rows: {some(known) or 'none'}"
        raise DataError(f"{KEY}: {file}: {found}; at least two are needed")
    place = {name: i for i, name in enumerate(known)}
    rows = list(zip(paths, classes, roles, sheet.lines, strict=True))
    unknown = ((line, name) for _, name, _, line in rows if name and name not in place)
    sheet.refuse(
        unknown, "a class that no training row has", "correct the labels, remove the rows, or use data.class_map"
    )
    return known, sorted((path, place[name], int(role)) for path, name, role, _ in rows if name)


def classes_in_order(names: set[str]) -> tuple[str, ...]:
    """Class names as outputs are numbered: by number where all are whole numbers, else by name."""
    if all(_PLACE.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def refuse_missing(file: Path, root: bytes, gone: Sequence[bytes]) -> None:
    """DataError with the lines of the paths in `gone`, whose files are not there."""
    sheet, lost = read_sheet(file, KEY), set(gone)
    wrong = [
        (line, os.fsdecode(path)) for path, line in zip(paths_of(sheet, root), sheet.lines, strict=True) if path in lost
    ]
    slash = ", write / in place of \\" if any("\\" in path for _, path in wrong) else ""
    where = f"paths are relative to {os.fsdecode(root)}; correct them{slash}, or set data.root"
    sheet.refuse(wrong, "a file that is not there or cannot be reached", where)


def paths_of(sheet: Sheet, root: bytes) -> list[bytes]:
    """The paths of all rows relative to `root`; DataError for an empty one, or one that stands twice."""
    cells = sheet.column("path", ALIASES["path"])
    assert cells is not None
    missing = [(line, "") for cell, line in zip(cells, sheet.lines, strict=True) if not cell]
    sheet.refuse(missing, "no path", "fill it in, or remove the rows")
    paths = [_relative(os.fsencode(cell), root) for cell in cells]
    first: dict[bytes, int] = {}
    again = []
    for path, line in zip(paths, sheet.lines, strict=True):
        if first.setdefault(path, line) != line:
            again.append((line, f"{os.fsdecode(path)}, as line {first[path]}"))
    sheet.refuse(again, "an image that stands twice", "keep one row of each image")
    return paths


def _relative(path: bytes, root: bytes) -> bytes:
    """One spelling of a path, from `root`: two rows of one file are found out."""
    return os.path.relpath(path, root) if os.path.isabs(path) else os.path.normpath(path)


def roles_of(sheet: Sheet) -> list[Folder]:
    """The split of every row; ALL in a table without that column."""
    cells = sheet.column("split", ALIASES["split"], needed=False)
    if cells is None:
        return [Folder.ALL] * len(sheet.cells)
    known = {cell: split_of(cell) for cell in set(cells)}
    unknown = ((line, cell or "empty") for cell, line in zip(cells, sheet.lines, strict=True) if not known[cell])
    sheet.refuse(unknown, "an unknown split", "write train, val, test, meta or select")
    roles = ROLES | {"val": Folder.SELECT if "test" in known.values() else Folder.TEST}
    return [roles[known[cell] or ""] for cell in cells]

"""Multi-label tables: any number of classes for an image, from several labels in a cell or a column for each class.

separated: the label column holds labels with a separator between them, blanks around each aside; an empty cell is an
image of no class. columns: every column besides path and split is a class, 1 where an image has it and 0 where not.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.class_names import some
from fastaug.data.folders import Folder
from fastaug.data.image_table import ALIASES, KEY, classes_in_order, paths_of, roles_of
from fastaug.data.sheets import Sheet, read_sheet
from fastaug.errors import DataError

KINDS = ("separated", "columns")
_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


class MultiLabels(NamedTuple):
    """Classes, rows (path, first class or 0, Folder) sorted by path, and uint8 [N, C]: which classes an image has.

    The first class stands in where one is needed: fractions are taken out of the images of each.
    """

    classes: tuple[str, ...]
    rows: list[tuple[bytes, int, int]]
    multi_hot: npt.NDArray[np.uint8]


def multi_label_rows(file: Path, root: bytes, kind: str, separator: str) -> MultiLabels:
    """The images of a table with any number of classes each; DataError with the lines that are wrong."""
    sheet = read_sheet(file, KEY)
    paths, roles = paths_of(sheet, root), roles_of(sheet)
    classes, table = _columns(sheet) if kind == "columns" else _separated(sheet, roles, separator)
    if len(classes) < 2:
        raise DataError(f"{KEY}: {file}: classes: {some(classes) or 'none'}; at least two are needed")
    if not any(role <= Folder.TRAIN for role in roles):
        raise DataError(f"{KEY}: {file} has no training row; write train into its split")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    multi_hot = table[order]
    first = multi_hot.argmax(1).tolist()
    rows = [(paths[i], label, int(roles[i])) for i, label in zip(order, first, strict=True)]
    return MultiLabels(classes, rows, multi_hot)


def _separated(sheet: Sheet, roles: list[Folder], separator: str) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    cells = sheet.column("label", ALIASES["label"])
    assert cells is not None
    named = [[name for word in cell.split(separator) if (name := word.strip())] for cell in cells]
    trained = (names for names, role in zip(named, roles, strict=True) if role <= Folder.TRAIN)
    classes = classes_in_order({name for names in trained for name in names})
    place = {name: i for i, name in enumerate(classes)}
    rows = list(zip(named, sheet.lines, strict=True))
    twice = ((line, ", ".join(names)) for names, line in rows if len(set(names)) < len(names))
    sheet.refuse(twice, "a label that stands twice in the cell", "keep one of each")
    unknown = ((line, name) for names, line in rows for name in names if name not in place)
    sheet.refuse(unknown, "a class that no training row has", "correct the labels, or remove them")
    table = np.zeros((len(rows), len(classes)), dtype=np.uint8)
    for row, (names, _) in enumerate(rows):
        table[row, [place[name] for name in names]] = 1
    return classes, table


def _columns(sheet: Sheet) -> tuple[tuple[str, ...], npt.NDArray[np.uint8]]:
    others = [sheet.place(name, ALIASES[name], needed=False) for name in ("path", "split")]
    places = [i for i in range(len(sheet.names)) if i not in others]
    classes = tuple(sheet.names[i].strip() for i in places)
    if len(set(classes)) < len(classes) or "" in classes:
        raise DataError(f"{KEY}: {sheet.file}: columns of classes need names of their own, found {some(classes)}")
    cells = [[row[i].strip() for i in places] for row in sheet.cells]
    wrong = (
        (line, f"{name}: {cell or 'empty'}")
        for row, line in zip(cells, sheet.lines, strict=True)
        for name, cell in zip(classes, row, strict=True)
        if cell not in _VALUES
    )
    sheet.refuse(wrong, "neither 0 nor 1 in a class's column", "write 1 where the image has it, else 0; or remove it")
    table = np.array([[_VALUES[cell] for cell in row] for row in cells], dtype=np.uint8)
    return classes, table.reshape(len(cells), len(classes))

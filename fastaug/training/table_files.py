"""Files of a checkpoint with the numbers of single images: one for each learned table, and its rows changed since.

A table may be larger than the network. Where that matters (`WHOLE`), a checkpoint has the file of the one before, as a
hard link, and beside it the rows that have changed since it was written; once those are many, it is written anew. Every
checkpoint so is complete in itself. A file system without hard links gets a whole table each time.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WHOLE = 1 << 26  # bytes: a smaller table is written whole, so that no two checkpoints depend on one file
MANY = 0.5  # share of changed rows from which on the table is written anew
_TABLE, _ROWS, _KIND = "table-", "rows-", ".safetensors"
_IDS = "ids"  # beside names of rows, which have dots


class Table(NamedTuple):
    """A learned table as it is saved: its `rows` by name, [size, ...] each, and which have `changed` [size].

    That is since its file was written; it is set by whoever changes a row, and emptied once a checkpoint has the new
    file.
    """

    rows: dict[str, Tensor]
    changed: Tensor


def is_of_table(name: str) -> bool:
    """Whether a file of a checkpoint is of a table."""
    return name.startswith((_TABLE, _ROWS))


def write_tables(folder: Path, tables: Mapping[str, Table], before: Callable[[str], Path | None]) -> list[Table]:
    """Writes the files of `tables` in `folder`; `before(name)`: that file of the checkpoint before, None if unsound.

    Returns the tables that were written anew: nothing of them has changed once the checkpoint is the last one.
    """
    anew = []
    for name, table in tables.items():
        whole, ids = folder / f"{_TABLE}{name}{_KIND}", table.changed.nonzero()[:, 0]
        size = sum(rows.numel() * rows.element_size() for rows in table.rows.values())
        few = size > WHOLE and len(ids) <= MANY * len(table.changed)
        if few and _linked(before(whole.name), whole):
            if len(ids):
                changed = {own: rows[ids] for own, rows in table.rows.items()} | {_IDS: ids}
                save_file(_on_host(changed), folder / f"{_ROWS}{name}{_KIND}")
        else:
            save_file(_on_host(table.rows), whole)
            anew.append(table)
    return anew


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _linked(source: Path | None, target: Path) -> bool:
    """Whether `target` could be made another name of the file `source`."""
    if source is None:
        return False
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def read_tables(folder: Path, files: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All rows by their names, and by table the ids whose rows have changed since its file was written."""
    rows: dict[str, Tensor] = {}
    changed: dict[str, Tensor] = {}
    for file in filter(lambda name: name.startswith(_TABLE), files):
        name = file.removeprefix(_TABLE).removesuffix(_KIND)
        found = load_file(folder / file)
        changed[name] = torch.zeros(0, dtype=torch.int64)
        if f"{_ROWS}{name}{_KIND}" in files:
            newer = load_file(folder / f"{_ROWS}{name}{_KIND}")
            changed[name] = newer.pop(_IDS)
            found = {own: known.index_copy(0, changed[name], newer[own]) for own, known in found.items()}
        rows |= found
    return rows, changed

"""Sheets: rows of text cells under named columns, read from CSV, TSV or parquet files, with line numbers for messages.

A first row names the columns, in any order and case; `Sheet.column` finds one by its name or an alias. Text is UTF-8, a
mark at its head aside; bytes that are none are kept, for file names need not be text. `.tsv` and `.tab` have tabs
between cells, `.csv` has commas, or semicolons where the first line has no comma. Quotes are those of RFC 4180.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastaug.atomic_files import open_regular
from fastaug.data.class_names import SHOWN, shown
from fastaug.errors import DataError

PARQUET = (".parquet", ".pq")
TABS = (".tsv", ".tab")
ENDINGS = (".csv", *TABS, *PARQUET)
_BOM = "\ufeff"


class Sheet(NamedTuple):
    """The rows of a file: cells [rows][columns] as text, "" where nothing stands, and the line of each row.

    `key` is the recipe's key that names the file, for messages.
    """

    file: Path
    key: str
    names: list[str]
    cells: list[list[str]]
    lines: list[int]

    def column(self, name: str, aliases: Sequence[str] = (), *, needed: bool = True) -> list[str] | None:
        """The cells of the column `name`, blanks around them aside; which one that is, and errors, as in `place`."""
        place = self.place(name, aliases, needed=needed)
        return None if place is None else [row[place].strip() for row in self.cells]

    def place(self, name: str, aliases: Sequence[str] = (), *, needed: bool = True) -> int | None:
        """Which column is `name`, else the one of its aliases that is there.

        None where there is none and none is `needed`. DataError for none, or for two aliases.
        """
        folded = [column.strip().casefold() for column in self.names]
        found = [i for i, column in enumerate(folded) if column == name] or [
            i for i, column in enumerate(folded) if column in aliases
        ]
        if len(found) > 1:
            both = " and ".join(shown(self.names[i]) for i in found)
            raise DataError(f"{self.key}: {self.file} has several columns of the {name}: {both}; keep one")
        if not found and needed:
            have = ", ".join(map(shown, self.names)) or "none"
            also = f" (or {', '.join(a for a in aliases if a != name)})" if aliases else ""
            raise DataError(f"{self.key}: {self.file} has no column {name}{also}, but {have}; name one so in line 1")
        return found[0] if found else None

    def refuse(self, lines: Iterable[tuple[int, str]], what: str, remedy: str) -> None:
        """DataError with the first of the `lines` (number, cell) and their count, where there are any."""
        wrong = list(lines)
        if not wrong:
            return
        first = ", ".join(f"line {number}" + (f" ({shown(cell)})" if cell else "") for number, cell in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        count = f"{len(wrong)} rows" if len(wrong) > 1 else "a row"
        raise DataError(f"{self.key}: {self.file}: {count} with {what}: {first}{more}; {remedy}")


def digest_of(file: Path, key: str) -> str:
    """SHA-256 of a file's bytes; DataError where it cannot be read."""
    return hashlib.sha256(_bytes(file, key)).hexdigest()


def _bytes(file: Path, key: str) -> bytes:
    try:
        with open_regular(file.expanduser()) as opened:
            return opened.read()
    except OSError as error:
        raise DataError(f"{key}: {file} cannot be read ({error.strerror}); correct the path or repair it") from error


def read_sheet(file: Path, key: str) -> Sheet:
    """The rows of a CSV, TSV or parquet file; DataError where it is none, or a row has other cells than line 1."""
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{key}: {file} must end in one of {', '.join(ENDINGS)}; rename or convert it")
    content = _bytes(file, key)
    sheet = _parquet(file, key, content) if ending in PARQUET else _delimited(file, key, content)
    if not sheet.cells:
        raise DataError(f"{key}: {file} has no rows below the names of its columns; add some")
    return sheet


def _delimited(file: Path, key: str, content: bytes) -> Sheet:
    text = content.decode(errors="surrogateescape").removeprefix(_BOM)
    if "\0" in text:
        raise DataError(f"{key}: {file} holds NUL characters, as UTF-16 has; save it as UTF-8")
    head = text.partition("\n")[0]
    separator = "\t" if file.suffix.lower() in TABS else "," if "," in head or ";" not in head else ";"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    cells: list[list[str]] = []
    lines: list[int] = []
    try:
        names = next(reader, [])
        for row in reader:
            if len(row) != len(names) and row:
                found = f"line {reader.line_num} has {len(row)} cells, line 1 {len(names)}"
                raise DataError(f"{key}: {file}: {found}; put cells that hold the separator into quotes")
            if row:  # an empty line is no row
                cells.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{key}: {file}, line {reader.line_num}: {error}; close or double the quotes") from error
    return Sheet(file, key, names, cells, lines)


def _parquet(file: Path, key: str, content: bytes) -> Sheet:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{key}: {file}: parquet needs pyarrow; pip install pyarrow, or save the table as CSV"
        ) from error
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{key}: {file} is no parquet file that can be read ({error}); write it again") from error
    if odd := [field.name for field in table.schema if _is_no_text(pyarrow.types, field.type)]:
        named = ", ".join(map(shown, odd))
        raise DataError(
            f"{key}: {file} has columns of lists, structures or bytes: {named}; leave them out, or write text"
        )
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Sheet(file, key, list(table.column_names), rows, list(range(1, len(rows) + 1)))


def _is_no_text(types: Any, kind: Any) -> bool:
    return bool(types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _text(value: Any) -> str:
    """A cell as a CSV file would have it; a whole number as such, for columns with gaps are stored as fractions."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

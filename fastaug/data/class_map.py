"""Class maps: files that give folders or labels other class names; several may share one, and some be left out.

A file of `sheets.py` with the columns `name` (of a folder or label) and `class`. Names that it does not hold stay. An
empty class leaves the images out; how many is said.
"""

from collections import Counter
from pathlib import Path

from fastaug.data.class_names import shown
from fastaug.data.sheets import read_sheet
from fastaug.errors import DataError

KEY = "data.class_map"


class ClassMap:
    """New names of classes; remembers which of its names were met and how many images were left out, by name."""

    def __init__(self, file: Path | None = None) -> None:
        """The map of `file`; None renames nothing. DataError where the file is wrong."""
        self.file, self._met = file, set[str]()
        self.left_out = Counter[str]()
        self._classes: dict[str, str] = {}
        self._lines: dict[str, int] = {}
        if file is None:
            return
        sheet = read_sheet(file, KEY)
        names, classes = sheet.column("name"), sheet.column("class")
        assert names is not None
        assert classes is not None
        rows = list(zip(names, classes, sheet.lines, strict=True))
        sheet.refuse(((line, "") for name, _, line in rows if not name), "no name", "fill it in, or remove the row")
        for name, new, line in rows:
            first = self._lines.setdefault(name, line)
            again = [(line, f"{name}, as line {first}")] if first != line else []
            sheet.refuse(again, "a name that stands twice", "keep one of the two")
            self._classes[name] = new

    def __contains__(self, name: str) -> bool:
        return name in self._classes

    def of(self, name: str, path: str | None = None) -> str:
        """The class of a folder or label `name`, or of its `path` where the map has that; "": left out."""
        for key in (path, name):
            if key is not None and key in self._classes:
                self._met.add(key)
                return self._classes[key]
        return name

    def check_met(self) -> None:
        """DataError where the map has names that no folder or label had."""
        if unknown := [name for name in self._classes if name not in self._met]:
            lines = ", ".join(f"line {self._lines[name]} ({shown(name)})" for name in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise DataError(
                f"{KEY}: {self.file}: names that no folder or label has: {lines}{more}; correct or remove these rows"
            )

    def said(self) -> str:
        """What was left out, as text; "" for nothing."""
        named = ", ".join(f"{shown(name)} ({count})" for name, count in sorted(self.left_out.items()))
        return f"{self.left_out.total()} images of {named}" if named else ""

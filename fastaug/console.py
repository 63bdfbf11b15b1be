"""The screen: one progress bar, log lines and a summary table, on the main process only."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Console:
    """The screen of a run: prints only when `main`, draws a moving bar only on a terminal."""

    def __init__(self, main: bool) -> None:
        self._console = RichConsole(file=sys.stdout, quiet=not main, highlight=False, soft_wrap=True)
        self._main = main

    @property
    def speaks(self) -> bool:
        """Whether anything is printed: in the main process, and not under --quiet."""
        return self._main

    def print(self, text: str) -> None:
        """One line, above the bar; what the screen has no letters for, as bytes of file names, stands as escapes."""
        code = self._console.encoding
        self._console.print(text.encode(code, "backslashreplace").decode(code), markup=False)

    def bar(self, description: str, total: int, done: int = 0) -> "Bar":
        """A progress bar of `total` steps as a context manager."""
        return Bar(self._console, self._main, description, total, done)

    def summary(self, title: str, rows: dict[str, str]) -> None:
        """A table of two columns."""
        table = Table(title=escape(title), show_header=False)
        for name, value in rows.items():
            table.add_row(escape(name), escape(value))
        self._console.print(table)


@contextmanager
def warnings_as_lines(speaks: bool) -> Iterator[None]:
    """Inside, a UserWarning is a line of standard error at once, each text once and where the process `speaks` alone.

    Python's own way names a line of source instead, in every process; warnings of other kinds go that way. Filters are
    the process's: not for threads.
    """
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        text = str(message)
        if not issubclass(category, UserWarning):
            python(message, category, *place, **options)
        elif speaks and text not in said:
            said.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        python, warnings.showwarning = warnings.showwarning, show
        yield


class Bar:
    """A progress bar; without a terminal it prints nothing."""

    def __init__(self, console: RichConsole, main: bool, description: str, total: int, done: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        shown = main and console.is_terminal
        self._progress = Progress(*columns, *times, console=console, transient=True, disable=not shown)
        self._task = self._progress.add_task(description, total=total, completed=done)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, description: str | None = None) -> None:
        """One step further, optionally under another description."""
        self._progress.update(self._task, advance=1, description=description)

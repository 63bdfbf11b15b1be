"""What can be fuzzed: sound files that a run takes from others, and what reads them (fuzz.py changes them)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

Reader = Callable[[Path], object]


def _nothing(folder: Path) -> None:
    del folder


class Target(NamedTuple):
    """Something to change: `write` makes sound files in a folder, `readers` read it, each by a name for messages.

    `errors`: the refusals that count. `seal` goes over the changed files before they are read: it makes what a checksum
    vouches for, for behind a broken one nothing else is read. `exact`: a pattern of files of which every change has to
    be refused.
    """

    write: Reader
    readers: Mapping[str, Reader]
    errors: tuple[type[Exception], ...]
    seal: Reader = _nothing
    exact: str = ""

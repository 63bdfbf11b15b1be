"""The files of a packed set: which belong to it, of which split each is, and whether one is missing.

A split is a word in a file's name, else in that of the nearest folder (`train-00000-of-00012.tar`,
`validation/00.tar`): the words that folders of splits may have (folders.py), between other characters than letters. A
set whose files all lack one is one set, from which fractions are taken.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from fastaug.data.class_names import SHOWN, some
from fastaug.data.folders import ROLES, Folder, split_of
from fastaug.data.packed.records import Container, Found
from fastaug.errors import DataError

_HALF = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".aria2", ".filepart", ".tmp")
_NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def files_of(place: str, kind: str, belongs: Callable[[str], bool]) -> Found:
    """The files that `place` names and whose name `belongs`: a file, a folder at any depth, or a pattern with braces.

    Sorted by path. DataError where there is none, one is missing, or is left half-downloaded.
    """
    if "{" in place or "::" in place:
        paths = sorted(Path(path).expanduser().absolute() for part in place.split("::") for path in expanded(part))
        if gone := [path.name for path in paths if not path.is_file()]:
            raise DataError(f"data.root: {kind}:{place}: {len(gone)} of {len(paths)} files are not there: {some(gone)}")
        if not paths:
            raise DataError(
                f"data.root: {kind}:{place}: the pattern names no file; a range begins with the smaller number"
            )
        top = Path(os.path.commonpath([path.parent for path in paths]))
    else:
        path = Path(place).expanduser().absolute()
        if not path.exists():
            raise DataError(f"data.root: {kind}:{place} does not exist or cannot be reached; correct the path")
        top = path if path.is_dir() else path.parent
        paths = [path] if path.is_file() else sorted(_below(path, belongs))
    names = [path.relative_to(top).as_posix() for path in paths]
    refuse_gaps(f"{kind}:{place}", names)
    splits = _splits(f"{kind}:{place}", names)
    return Found(top, tuple(Container(*file) for file in zip(paths, names, splits, strict=True)))


def expanded(pattern: str) -> list[str]:
    """All words of a pattern: `{000..012}` counts, `{a,b}` lists."""
    if (found := _BRACES.search(pattern)) is None:
        return [pattern]
    if span := _RANGE.fullmatch(found[1]):
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = found[1].split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [word for choice in choices for word in expanded(head + choice + tail)]


def _below(top: Path, belongs: Callable[[str], bool]) -> Iterator[Path]:
    """Files at any depth whose name `belongs`; names with a leading dot are left out, links are followed."""
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(_HALF) and belongs(os.path.splitext(name)[0]):
                text = f"data.root: {Path(folder) / name} was left by a download that did not end"
                raise DataError(f"{text}; finish it, or remove the file")
            if not name.startswith(".") and belongs(name):
                yield Path(folder) / name


def _unlisted(error: OSError) -> None:
    raise DataError(f"data.root: {error.filename!r} cannot be listed ({error.strerror}); repair it or correct the path")


def refuse_gaps(where: str, names: Sequence[str]) -> None:
    """DataError where files are numbered NNNNN-of-MMMMM and one of the M is not there."""
    numbers: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            numbers[found[1], found[3], found[4]].add(int(found[2]))
    for (head, count, tail), have in numbers.items():
        first = 1 if int(count) in have and 0 not in have else 0
        all_of = range(first, first + int(count))
        if lost := int(count) - sum(number in all_of for number in have):
            gone = islice((number for number in all_of if number not in have), SHOWN)
            missing = [f"{head}{number:0{len(count)}d}-of-{count}{tail}" for number in gone]
            more = f" and {lost - SHOWN} more" if lost > SHOWN else ""
            text = f"data.root: {where} lacks {lost} of {int(count)} files: {', '.join(missing)}{more}"
            raise DataError(f"{text}; download the rest")


def _splits(where: str, names: Sequence[str]) -> list[str]:
    splits = [split_in(name) for name in names]
    lost = [name for name, split in zip(names, splits, strict=True) if not split]
    if lost and len(lost) < len(names):
        text = f"data.root: {where}: no word of a split in the names of {some(lost)}, as others have"
        raise DataError(f"{text}; put train, val or test into each name, or move these files away")
    return splits


def split_in(name: str) -> str:
    """The split that a path's file name speaks of, else its folders, the nearest first; "" for none.

    DataError for a name that speaks of two.
    """
    for part in reversed(name.split("/")):
        words = re.split(r"[^A-Za-z]+", part)
        found = list(dict.fromkeys(split for word in words if (split := split_of(word)) is not None)) if words else []
        if len(found) > 1:
            raise DataError(f"data.root: the name {name} speaks of {' and '.join(found)}; rename it after one split")
        if found:
            return found[0]
    return ""


def roles_of(where: str, splits: Iterable[str]) -> dict[str, Folder]:
    """The role of each word of a split: val is the test split, unless there is a test too. DataError without train."""
    known = set(splits)
    if known == {""}:
        return {"": Folder.ALL}
    if "train" not in known:
        text = f"data.root: {where} has the splits {some(known)}, but none to train on"
        raise DataError(f"{text}; add the files of train")
    return ROLES | {"val": Folder.SELECT if "test" in known else Folder.TEST}

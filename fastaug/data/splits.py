"""Splits for training, meta step, model selection and test: disjoint sets of ids, fixed by index, seed, fractions.

Rule for fractions: in a class of n training images, in an order drawn by (seed, class), the first
round(test * n) are test, the next round(select * n) select, the next round(meta * n) meta, halves up, on the
decimal as written; the last image of a class stays in train. Each class is drawn by itself: files added to
one leave the choice in the others as it was, and a meta fraction changes nothing in test or select. Totals
can differ from fraction * N, by at most half an image per class (more where a class runs out of images).

One exception to disjoint, for ablations alone: a list meta.txt whose only line is @test or @train makes the meta split
the images of that role. With @test the meta step learns from the images that judge it: an upper bound, not a result.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, count, islice
from math import floor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastaug.atomic_files import open_regular
from fastaug.data.class_names import shown
from fastaug.data.image_headers import Status
from fastaug.data.index import Folder, Index
from fastaug.data.path_table import Places
from fastaug.errors import DataError
from fastaug.seeding import Key, Stream, permuted

Ids = npt.NDArray[np.int64]
BOM = b"\xef\xbb\xbf"  # at the head of texts from some editors
STRETCH = 1 << 16  # lines of a list that are objects of Python's at one time
ROLES = ("train", "meta", "select", "test")
_TAKEN = ("test", "select", "meta")  # in this order out of train
SHARED = {b"@test": "test", b"@train": "train"}  # a list of this line alone: the meta split is that role
_LONGEST = 64  # bytes of a list of such a line, blanks around it included
_FOLDERS = {"train": Folder.TRAIN, "meta": Folder.META, "select": Folder.SELECT, "test": Folder.TEST}


@dataclass(frozen=True, eq=False)
class Splits:
    """Splits of a data set: sorted int64 ids of each role, damaged images too (the loader drops and counts them).

    `meta_shares`: the role whose images meta has too, see the head of this file; None where all are disjoint.
    """

    train: Ids
    meta: Ids
    select: Ids
    test: Ids
    meta_shares: str | None = None

    def of(self, name: str) -> Ids:
        """The ids of one role by name."""
        if name not in ROLES:
            raise ValueError(f"split {name!r}: must be one of {', '.join(ROLES)}")
        ids: Ids = getattr(self, name)
        return ids


def make_splits(
    index: Index,
    *,
    seed: int,
    meta: float = 0,
    select: float = 0,
    test: float = 0,
    files: Path | None = None,
    needs_test: bool = True,
) -> Splits:
    """The roles of all ids: from the folders, then fractions of train, or from lists in the folder `files`.

    A role without a list in `files` keeps the images of its folder. ValueError for fractions outside [0, 1)
    or with `files`; DataError for overlap, for an empty train or (with `needs_test`) test, or a split without an
    undamaged image.
    """
    fractions = {"test": test, "select": select, "meta": meta}
    _check_fractions(fractions, files)
    roles = {role: np.flatnonzero(index.folders == folder) for role, folder in _FOLDERS.items()}
    shared = None
    if files is not None:
        roles |= _read_lists(index, files)
        shared = _shared(files)
    else:
        roles["train"] = np.flatnonzero(np.isin(index.folders, (Folder.ALL, Folder.TRAIN)))
        roles = _take(index, roles, seed, fractions)
    _check(index, roles, fractions, needs_test)
    if shared is not None:
        roles["meta"] = roles[shared]
    return Splits(**{role: np.sort(ids).astype(np.int64) for role, ids in roles.items()}, meta_shares=shared)


def _check_fractions(fractions: Mapping[str, float], files: Path | None) -> None:
    for name, value in fractions.items():
        if not 0 <= value < 1:  # refuses NaN too
            raise ValueError(f"data.{name}_fraction = {value}: must lie in [0, 1)")
        if value and files is not None:
            raise ValueError(f"data.{name}_fraction = {value} together with data.splits = {files}; set it to 0")
    if sum(fractions.values()) >= 1:
        raise ValueError(f"the fractions {dict(fractions)} leave nothing to train on; their sum must be below 1")


def _take(index: Index, roles: dict[str, Ids], seed: int, fractions: Mapping[str, float]) -> dict[str, Ids]:
    """Moves the fractions out of train, class by class (rule at the head of this file)."""
    for name, value in fractions.items():
        if value and len(roles[name]):
            text = f"data.{name}_fraction = {value}, but {index.root} has a folder for {name}"
            raise DataError(f"{text} ({len(roles[name])} images); set data.{name}_fraction to 0")
    parts: dict[str, list[Ids]] = {role: [] for role in ROLES}
    exact = {name: Fraction(str(float(value))) for name, value in fractions.items()}
    labels = index.labels[roles["train"]]
    grouped = roles["train"][np.argsort(labels, kind="stable")]
    ends = np.cumsum(np.bincount(labels, minlength=len(index.classes)))
    for label, members in enumerate(np.split(grouped, ends[:-1])):
        # Drawn by position in the class, not by id: an id moves when any class before it grows.
        order = members[permuted(Key(seed, label, Stream.SPLIT), np.arange(len(members)))]
        start = 0
        for name in _TAKEN:
            stop = min(start + floor(exact[name] * len(members) + Fraction(1, 2)), max(len(members) - 1, 0))
            parts[name].append(order[start:stop])
            start = stop
        parts["train"].append(order[start:])
    taken = {role: np.concatenate(found) for role, found in parts.items()}
    return {role: taken[role] if role == "train" or fractions[role] else roles[role] for role in ROLES}


def _read_lists(index: Index, folder: Path) -> dict[str, Ids]:
    """The ids in train.txt and, where present, meta.txt, select.txt and test.txt."""
    if not (folder / "train.txt").is_file():
        raise DataError(f"data.splits: {folder / 'train.txt'} is missing; list the training images there, one a line")
    known = {f"{role}.txt" for role in ROLES}
    if extra := sorted(path.name for path in folder.glob("*.txt") if path.name not in known):
        raise DataError(f"data.splits: {folder / extra[0]} is no split; rename it to one of {', '.join(sorted(known))}")
    places = Places(index.paths)
    lists = {role: folder / f"{role}.txt" for role in ROLES}
    return {role: _read_list(file, places, len(index)) for role, file in lists.items() if file.exists()}


def _shared(folder: Path) -> str | None:
    """The role that meta.txt names in place of images; a warning says what that makes of the run."""
    file = folder / "meta.txt"
    role = _role_in(file) if file.exists() else None
    if role is not None:
        means = "an upper bound, not a result" if role == "test" else "no clean image is held out"
        warnings.warn(f"data.splits: {file} makes the meta split the {role} split: {means}", stacklevel=3)
    return role


def _role_in(file: Path) -> str | None:
    """The role that the only line of a list names; None where the list is longer than such a line, and so of images."""
    with open_regular(file) as opened:
        text = opened.read(_LONGEST + 1)
    return SHARED.get(text.removeprefix(BOM).strip()) if len(text) <= _LONGEST else None


def _read_list(file: Path, places: Places, total: int) -> Ids:
    """The ids, below `total`, that a file lists: one id, or path relative to the data root, a line.

    Blank lines do not count, nor do those that begin with '#' and are no path. A file whose path holds a line feed is
    named by its id.
    """
    listed = np.zeros(total, dtype=np.int64)  # the line that each image is in
    try:
        if file.name == "meta.txt" and _role_in(file) is not None:
            return np.empty(0, np.int64)  # that line is no path: those of images begin with a folder
        for first, lines in stretches(file):
            entries = [line.removesuffix(b"\r") for line in lines]
            for number, (entry, id) in enumerate(zip(entries, ids_of(entries, places, total), strict=True), first):
                if not entry.strip() or (entry.startswith(b"#") and id < 0):
                    continue
                if id < 0 or listed[id]:
                    reason = f"is the image of line {listed[id]} again; remove one of the two lines"
                    none = f"is neither an id below {total} nor a path below data.root; correct the line"
                    where = f"data.splits: {file}, line {number}: {os.fsdecode(entry)!r}"
                    raise DataError(f"{where} {none if id < 0 else reason}")
                listed[id] = number
    except OSError as error:
        raise DataError(f"data.splits: {file} cannot be read ({error.strerror}); repair or remove it") from error
    return np.flatnonzero(listed)


def stretches(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file without their line feeds, some at a time, each time with the number of the first of them."""
    with open_regular(file) as opened:
        lines = (line.removesuffix(b"\n") for line in opened)
        for first in count(1, STRETCH):
            found = list(islice(lines, STRETCH))
            if not found:
                return
            yield first, [found[0].removeprefix(BOM), *found[1:]] if first == 1 else found


def ids_of(names: Sequence[bytes], places: Places, total: int) -> list[int]:
    """The image that each name says by its path or its id below `total`, as `id_of`; -1 where there is none."""
    found = places.of(names)
    rest = np.flatnonzero(found < 0).tolist()
    bare = [names[i].strip() for i in rest]
    for i, word, id in zip(rest, bare, places.of(bare).tolist(), strict=True):
        number = int(word) if id < 0 and word.isdigit() and len(word) < 12 else total
        found[i] = id if id >= 0 else number if number < total else -1
    ids: list[int] = found.tolist()
    return ids


def id_of(entry: bytes, ids: Mapping[bytes, int]) -> int | None:
    """The image that a line names by its path or its id, blanks around it aside unless the path has them."""
    for name in (entry, entry.strip()):
        if name in ids:
            return ids[name]
    word = entry.strip()
    number = int(word) if word.isdigit() and len(word) < 12 else len(ids)
    return number if number < len(ids) else None


def _check(index: Index, roles: Mapping[str, Ids], fractions: Mapping[str, float], needs_test: bool) -> None:
    for one, other in combinations(ROLES, 2):
        taken = np.zeros(len(index), dtype=bool)  # a table, for np.intersect1d takes seconds at a million ids
        taken[roles[one]] = True
        both = np.sort(roles[other][taken[roles[other]]])
        if len(both):
            name = shown(os.fsdecode(index.paths[int(both[0])]))
            text = f"{one} and {other} share {len(both)} images, the first id {both[0]} ({name})"
            raise DataError(f"data.splits: {text}; list each image once")
    for role, value in fractions.items():
        if value and not len(roles[role]):
            text = f"data.{role}_fraction = {value} takes no image out of any class"
            raise DataError(f"{text}; raise data.{role}_fraction or set it to 0")
    if not len(roles["train"]):
        raise DataError(f"no training image in {index.root}; set data.root, or list some in train.txt of data.splits")
    if needs_test and not len(roles["test"]):
        remedy = "set data.test_fraction, add a val or test folder, or list some in test.txt of data.splits"
        raise DataError(f"no test image in {index.root}; {remedy}")
    for role, ids in roles.items():
        if len(ids) and (index.status[ids] == Status.DAMAGED).all():
            first = int(ids[0])
            path = shown(os.fsdecode(index.path(first)))
            text = f"all {len(ids)} images of {role} are damaged, the first {path} ({index.reasons[first]})"
            raise DataError(f"{text}; repair them or change data.root")

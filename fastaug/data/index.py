"""The index: one table per data root, made once; row number = stable id in the set sorted by path bytes.

What is listed: listing.py; what makes an image DAMAGED: image_headers.py.

The table is cached. Folders are listed anew when the time of one has changed (a file was added, removed or renamed), a
table of images or a class map when its bytes have.
Every use compares length and time of each file with those at its last reading; what differs, or is new, is read.
"""

import hashlib
import os
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from fastaug.data.broken_arrays import BROKEN
from fastaug.data.class_names import some
from fastaug.data.folders import Folder, Walk, stamp
from fastaug.data.image_headers import screen_all, stamps_of
from fastaug.data.image_table import refuse_missing
from fastaug.data.listing import USUAL, Listing, find_images
from fastaug.errors import DataError

__all__ = [
    "Folder",
    "Index",
    "PathTable",
    "Status",
    "cache_dir",
    "cache_file",
    "from_arrays",
    "load_index",
    "text_arrays",
    "texts_of",
    "to_arrays",
]

VERSION = 2  # of the cache file
COLUMNS = ("labels", "heights", "widths", "status", "folders")


class Status(IntEnum):
    """Whether an image can be decoded, as far as its header tells."""

    OK = 0
    DAMAGED = 1


class PathTable(Sequence[bytes]):
    """A list of byte strings in one block: `blob` with `offsets` [N+1] int64; `table[id]` -> bytes, ids in [0, N)."""

    def __init__(self, blob: bytes, offsets: npt.NDArray[np.int64]) -> None:
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "PathTable":
        """The table of `names`."""
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def sound(self) -> bool:
        """Whether every string lies inside the block."""
        ends = self.offsets
        if ends.ndim != 1 or not len(ends) or ends.dtype.kind not in "iu":
            return False
        return bool(ends[0] == 0 and ends[-1] == len(self.blob) and (ends[1:] >= ends[:-1]).all())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, id: int) -> bytes: ...
    @overload
    def __getitem__(self, id: slice) -> "PathTable": ...
    def __getitem__(self, id: int | slice) -> "bytes | PathTable":
        if isinstance(id, slice):
            return PathTable.of([self[i] for i in range(*id.indices(len(self)))])
        if not 0 <= id < len(self):  # a negative id is a mistake, not the other end
            raise IndexError(f"id {id} is outside [0, {len(self)})")
        return self.blob[self.offsets[id] : self.offsets[id + 1]]


@dataclass(frozen=True, eq=False)
class Index:
    """A table of the N images below `root`, one row an id: path, label (position in `classes`), size and damage.

    Heights and widths are those of the decoded image, 0 when unreadable. `stamps` tell whether a file was changed since
    its row was made; None where images are not files of their own.
    """

    root: Path
    classes: tuple[str, ...]
    paths: PathTable  # [N] relative to root
    labels: npt.NDArray[np.int64]  # [N]
    heights: npt.NDArray[np.int32]  # [N]
    widths: npt.NDArray[np.int32]  # [N]
    status: npt.NDArray[np.uint8]  # [N] of Status
    folders: npt.NDArray[np.uint8]  # [N] of Folder
    reasons: dict[int, str]  # why each DAMAGED row is
    stamps: npt.NDArray[np.int64] | None = field(default=None, kw_only=True)  # [N, 3] see stamps_of
    multi_hot: npt.NDArray[np.uint8] | None = field(default=None, kw_only=True)  # [N, C], see multi_label.py
    channels: int = field(default=3, kw_only=True)  # of every image, as it is decoded

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, id: int) -> bytes:
        """Absolute path of image `id`; bytes, for a file name need not be text."""
        return os.path.join(os.fsencode(self.root), self.paths[id])


class Seen(NamedTuple):
    """What a walk saw besides the images: folders with their stamps, and a text of files left out for their endings.

    Of tables and class maps: the digest of their bytes, and a text of the images that a map leaves out.
    """

    folders: dict[bytes, int]
    others: str
    digest: str = ""
    unmapped: str = ""

    def current(self, root: Path, digest: str) -> bool:
        """Whether files and every folder are as they were: nothing was added, removed or renamed."""
        top = os.fsencode(root)
        return digest == self.digest and all(stamp(os.path.join(top, path)) == at for path, at in self.folders.items())


def cache_dir() -> Path:
    """The folder of caches: $FASTAUG_CACHE, else $XDG_CACHE_HOME/fastaug, else ~/.cache/fastaug."""
    if own := os.environ.get("FASTAUG_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastaug"


def cache_file(root: Path, exif: str, cache: Path | None = None, listing: Listing = USUAL) -> Path:
    """Where the index of `root` is kept, below `cache` (default cache_dir()/"index")."""
    name = hashlib.sha256(os.fsencode(root.expanduser().resolve())).hexdigest()[:24]
    other = f"-{hashlib.sha256(os.fsencode(listing.name())).hexdigest()[:16]}" if listing.name() else ""
    return (cache or cache_dir() / "index") / f"{name}-{exif}{other}.npz"


def load_index(
    root: str | Path,
    *,
    exif: str = "ignore",
    cache: Path | None = None,
    threads: int = 8,
    progress: bool = False,
    listing: Listing = USUAL,
) -> Index:
    """The index of `root`, from the cache when nothing changed; DataError when it cannot be trained on.

    exif: "ignore" (extent as stored) or "apply" (orientations 5-8 swap height and width). listing: by folders as they
    are, unless it says otherwise.
    """
    digest = listing.digest()
    if exif not in ("ignore", "apply"):
        raise ValueError(f"exif = {exif!r}: must be 'ignore' or 'apply'")
    root = Path(root).expanduser().resolve()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DataError(f"data.root: {root} {found}; set data.root to a folder of class folders")
    file = cache_file(root, exif, cache, listing)
    before, seen = _read_cache(file, root, listing.channels) or (None, None)
    listed = before if seen and seen.current(root, digest) else None
    if listed is None:
        listed, seen = _listed(root, listing, digest)
    assert seen is not None
    stamps = stamps_of(os.fsencode(root), listed.paths, threads)  # before reading: later changes are noticed next time
    if listing.table is not None and (gone := np.flatnonzero(stamps[:, 0] < 0).tolist()):
        refuse_missing(listing.table, os.fsencode(root), [listed.paths[i] for i in gone])
    index, changed = _screened(listed, before, stamps, exif, threads, progress)
    if index is not before:
        _write_cache(file, index, seen)
    if changed:
        names = some(_shown(index.paths[i]) for i in changed)
        warnings.warn(f"changed since the index of {root} was made, read again: {names}", stacklevel=2)
    if seen.others:
        text = f"{root}: left out, for images with such endings are not read: {seen.others}; convert them"
        warnings.warn(text, stacklevel=2)
    if seen.unmapped:
        warnings.warn(f"data.class_map leaves out {seen.unmapped}", stacklevel=2)
    return index


def _listed(root: Path, listing: Listing, digest: str) -> tuple[Index, Seen]:
    """The images below `root` by path and label, none of them looked at, and what was seen besides."""
    walk = Walk(os.fsencode(root), listing.endings())
    found = find_images(walk, listing)
    rows, count = found.rows, len(found.rows)
    index = Index(
        root=root,
        classes=found.classes,
        paths=PathTable.of([path for path, _, _ in rows]),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        heights=np.zeros(count, np.int32),
        widths=np.zeros(count, np.int32),
        status=np.zeros(count, np.uint8),
        folders=np.array([folder for _, _, folder in rows], dtype=np.uint8),
        reasons={},
        multi_hot=found.multi_hot,
        channels=listing.channels,
    )
    return index, Seen(walk.watch, walk.others(), digest, found.unmapped)


def _screened(
    listed: Index, before: Index | None, stamps: npt.NDArray[np.int64], exif: str, threads: int, progress: bool
) -> tuple[Index, list[int]]:
    """The index of what is listed, and the ids of files that were changed since the index `before` was made.

    What is in that one and was not changed is not read again; `before` itself where nothing was read.
    """
    top = os.fsencode(listed.root)
    row = _rows_in(before, listed)
    known = np.flatnonzero(row >= 0)
    if before is not None and before.stamps is not None:
        old = before.stamps[row[known]]
        repaired = (before.status[row[known]] == Status.DAMAGED) & (stamps[known, 2] != old[:, 2])
        known = known[~((stamps[known, :2] != old[:, :2]).any(axis=1) | repaired)]
    if listed is before and len(known) == len(listed):
        return before, []
    heights, widths = np.zeros_like(listed.heights), np.zeros_like(listed.widths)
    status = np.zeros_like(listed.status)
    reasons: dict[int, str] = {}
    if before is not None:
        heights[known], widths[known] = before.heights[row[known]], before.widths[row[known]]
        status[known] = before.status[row[known]]
        reasons = {i: before.reasons[r] for i, r in zip(known.tolist(), row[known].tolist(), strict=True) if status[i]}
    new = np.setdiff1d(np.arange(len(listed)), known).tolist()
    text = f"index: reading {len(new):,} of {len(listed):,} images" if progress and new else ""
    headers = screen_all(top, [listed.paths[i] for i in new], exif, threads, text, listed.channels)
    for i, header in zip(new, headers, strict=True):
        heights[i], widths[i], status[i] = header.height, header.width, Status.DAMAGED if header.reason else Status.OK
        reasons |= {i: header.reason} if header.reason else {}
    index = replace(
        listed, heights=heights, widths=widths, status=status, reasons=dict(sorted(reasons.items())), stamps=stamps
    )
    return index, [i for i in new if row[i] >= 0]


def _rows_in(before: Index | None, listed: Index) -> npt.NDArray[np.int64]:
    """Where each listed path is in the index `before`, -1 where it is not."""
    if before is None:
        return np.full(len(listed), -1)
    if before is listed:
        return np.arange(len(listed))
    place = {path: i for i, path in enumerate(before.paths)}
    return np.array([place.get(path, -1) for path in listed.paths], dtype=np.int64)


def _shown(path: bytes) -> str:
    return os.fsdecode(path).encode(errors="backslashreplace").decode()


def to_arrays(index: Index) -> dict[str, Any]:
    """The table as arrays for np.savez, without the root; `from_arrays` reads it back."""
    texts = {
        "paths": index.paths,
        "classes": PathTable.of([os.fsencode(name) for name in index.classes]),
        "reasons": PathTable.of([reason.encode(errors="replace") for reason in index.reasons.values()]),
    }
    arrays = {name: getattr(index, name) for name in COLUMNS} | text_arrays(texts)
    arrays |= {} if index.multi_hot is None else {"multi_hot": index.multi_hot}
    return arrays | {"damaged": np.array(list(index.reasons), dtype=np.int64)}


def text_arrays(texts: dict[str, PathTable]) -> dict[str, Any]:
    """Tables of texts as arrays for np.savez; `texts_of` reads one back."""
    arrays: dict[str, Any] = {name: np.frombuffer(table.blob, dtype=np.uint8) for name, table in texts.items()}
    return arrays | {f"{name}_offsets": table.offsets for name, table in texts.items()}


def from_arrays(z: "np.lib.npyio.NpzFile", root: Path) -> dict[str, Any]:
    """The fields of an Index below `root` from an opened file of `to_arrays`; KeyError or ValueError when broken."""
    reasons = (text.decode() for text in texts_of(z, "reasons"))
    return {
        "root": root,
        "classes": tuple(os.fsdecode(name) for name in texts_of(z, "classes")),
        "paths": texts_of(z, "paths"),
        "reasons": dict(zip(z["damaged"].tolist(), reasons, strict=True)),
        **{name: z[name] for name in (*COLUMNS, *(["multi_hot"] if "multi_hot" in z.files else []))},
    }


def _write_cache(file: Path, index: Index, seen: Seen) -> None:
    """Replaces the cache file in one step: processes that race write the same table."""
    texts = {"watch": PathTable.of(list(seen.folders)), "others": PathTable.of([seen.others.encode()])}
    texts["listing"] = PathTable.of([seen.digest.encode(), seen.unmapped.encode(errors="backslashreplace")])
    arrays = to_arrays(index) | text_arrays(texts)
    arrays["watched"] = np.array(list(seen.folders.values()), dtype=np.int64)
    arrays["stamps"] = index.stamps
    arrays["version"] = np.array(VERSION)
    temporary = file.with_name(f".{file.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as out:
            np.savez(out, **arrays)
        os.replace(temporary, file)
    except OSError as error:
        text = f"the index of {index.root} is not cached ({error}); set FASTAUG_CACHE to a folder with room"
        warnings.warn(text, stacklevel=3)
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _read_cache(file: Path, root: Path, channels: int) -> tuple[Index, Seen] | None:
    """The cached index and what was seen, current or not; None when there is none, or its bytes are broken."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as z:  # checks CRCs
            if int(z["version"]) != VERSION:
                return None
            watch = dict(zip(texts_of(z, "watch"), z["watched"].tolist(), strict=True))
            listing = (
                [text.decode() for text in texts_of(z, "listing")] if "listing" in z.files else []
            )  # 0.2.0 had none
            index = Index(**from_arrays(z, root), stamps=z["stamps"], channels=channels)
            return index, Seen(watch, texts_of(z, "others")[0].decode(), *listing)
    except BROKEN:
        return None  # absent or broken: it is made anew


def texts_of(z: "np.lib.npyio.NpzFile", name: str) -> PathTable:
    """A table of `text_arrays` from an opened file; ValueError when broken."""
    table = PathTable(z[name].tobytes(), z[f"{name}_offsets"])
    if not table.sound():
        raise ValueError(f"the texts {name} lie outside their block")
    return table

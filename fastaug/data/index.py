"""The index: one table per data root, made once; row number = stable id in the set sorted by path bytes.

What is listed: listing.py; what makes an image DAMAGED: image_headers.py.

The table is cached. Folders are listed anew when the time of one has changed (a file was added, removed or renamed), a
table of images or a class map when its bytes have.
Every use compares length and time of each file (file_stamps.py) with those at its last reading; what differs, or is
new, is read (header_pass.py).
"""

import hashlib
import os
import secrets
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.broken_arrays import BROKEN, open_npz
from fastaug.data.class_names import some
from fastaug.data.file_stamps import Stamps, stamps_of
from fastaug.data.folders import Folder, Walk, stamp
from fastaug.data.header_pass import HeaderParts, HeaderPass, Known, changed_since, remove_parts
from fastaug.data.image_headers import HeaderTable
from fastaug.data.image_table import refuse_missing
from fastaug.data.listing import USUAL, Listing, find_images
from fastaug.data.path_table import PathTable, places_in, text_arrays, texts_of
from fastaug.errors import DataError

__all__ = [
    "Folder",
    "Index",
    "cache_dir",
    "cache_file",
    "from_arrays",
    "load_index",
    "tell_broken",
    "to_arrays",
]

VERSION = 2  # of the cache file
COLUMNS = ("labels", "heights", "widths", "status", "folders")


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
        listed, seen = _listed(root, listing, digest, threads, progress)
    assert seen is not None
    stamps = stamps_of(os.fsencode(root), listed.paths, threads)  # before reading: later changes are noticed next time
    if listing.table is not None and (gone := np.flatnonzero(stamps[:, 0] < 0).tolist()):
        refuse_missing(listing.table, os.fsencode(root), [listed.paths[i] for i in gone])
    parts, changed = file.with_suffix(".parts"), list[int]()
    if listed is before and not changed_since(_known(before), stamps).any():
        index, cached = before, True
    else:
        kept = HeaderParts(parts, listed.paths, VERSION)
        index, changed = _screened(listed, before, stamps, exif, threads, progress, kept)
        cached = _write_cache(file, index, seen)
    if cached:
        remove_parts(parts)
    if changed:
        names = some(_shown(index.paths[i]) for i in changed)
        warnings.warn(f"changed since the index of {root} was made, read again: {names}", stacklevel=2)
    if seen.others:
        text = f"{root}: left out, for images with such endings are not read: {seen.others}; convert them"
        warnings.warn(text, stacklevel=2)
    if seen.unmapped:
        warnings.warn(f"data.class_map leaves out {seen.unmapped}", stacklevel=2)
    return index


def _listed(root: Path, listing: Listing, digest: str, threads: int, progress: bool) -> tuple[Index, Seen]:
    """The images below `root` by path and label, none of them looked at, and what was seen besides."""
    walk = Walk(os.fsencode(root), listing.endings())
    found = find_images(walk, listing, threads, progress)
    index = Index(
        root=root,
        classes=found.classes,
        **found.rows._asdict(),
        **HeaderTable.empty(len(found.rows.labels))._asdict(),
        multi_hot=found.multi_hot,
        channels=listing.channels,
    )
    return index, Seen(walk.watch, walk.others(), digest, found.unmapped)


def _screened(
    listed: Index,
    before: Index | None,
    stamps: Stamps,
    exif: str,
    threads: int,
    progress: bool,
    parts: HeaderParts,
) -> tuple[Index, list[int]]:
    """The index of what is listed, and the ids of files that were changed since the index `before` was made.

    What is in that one, or in `parts` of a pass that was killed, and was not changed is not read again.
    """
    headers = HeaderPass(listed.paths, stamps)
    changed: list[int] = []
    if before is not None:
        places = places_in(before.paths, listed.paths)
        rows = np.flatnonzero(places >= 0)
        changed = headers.take(rows, _known(before).of(places[rows])).tolist()
    for rows, known in parts.load():
        headers.take(rows, known)
    count = int(headers.unread.sum())
    text = f"index: reading {count:,} of {len(listed):,} images" if progress and count else ""
    headers.read(os.fsencode(listed.root), exif, threads, text, listed.channels, parts)
    columns = headers.headers._replace(reasons=dict(sorted(headers.headers.reasons.items())))
    return replace(listed, **columns._asdict(), stamps=stamps), changed


def _known(index: Index) -> Known:
    """What a cached index knows of its files."""
    assert index.stamps is not None
    return Known(HeaderTable(index.heights, index.widths, index.status, index.reasons), index.stamps)


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


def _write_cache(file: Path, index: Index, seen: Seen) -> bool:
    """Replaces the cache file in one step: processes that race write the same table. False, and a warning, if not."""
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
        return False
    return True


def _read_cache(file: Path, root: Path, channels: int) -> tuple[Index, Seen] | None:
    """The cached index and what was seen, current or not; None when there is none, or its bytes are broken."""
    try:
        with open_npz(file) as z:
            if int(z["version"]) != VERSION:
                return None
            watch = dict(zip(texts_of(z, "watch"), z["watched"].tolist(), strict=True))
            listing = (
                [text.decode() for text in texts_of(z, "listing")] if "listing" in z.files else []
            )  # 0.2.0 had none
            columns = from_arrays(z, root) | {"stamps": z["stamps"]}
            seen = Seen(watch, texts_of(z, "others")[0].decode(), *listing)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BROKEN as error:
        tell_broken(file, error)
        return None
    return Index(**columns, channels=channels), seen


def tell_broken(file: Path, error: Exception) -> None:
    """Warns that a cached index is there and cannot be read."""
    text = f"{file} cannot be read and is made anew ({error!r}); check the storage if it happens again"
    warnings.warn(text, stacklevel=4)

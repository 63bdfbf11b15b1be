"""The index of a packed set: a row for each record, in the order of its files, made once and kept in the cache.

It is made anew when one of the files has another size or time, or is read in another way. Its ids are the rows: the
order of the files' paths, and in each file its own.
"""

import hashlib
import io
import os
import resource
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.atomic_files import write_atomically
from fastaug.data.broken_arrays import BROKEN, open_npz
from fastaug.data.class_map import ClassMap
from fastaug.data.class_names import some
from fastaug.data.folders import Folder
from fastaug.data.image_files import read_image_file
from fastaug.data.image_headers import Header, screen, screen_each, screen_stretch, table_of
from fastaug.data.image_table import classes_in_order
from fastaug.data.index import Index, cache_dir, from_arrays, tell_broken, to_arrays
from fastaug.data.packed import arrow, imagenet, parquet, tars, tfrecords
from fastaug.data.packed.places import roles_of
from fastaug.data.packed.records import NO_KEYS, OWN_FILE, Contents, Found, Keys, Record, refuse
from fastaug.data.path_table import PathTable, text_arrays, texts_of
from fastaug.data.shards.files import ShardFiles
from fastaug.errors import DataError

VERSION = 1  # of the cache file
AGAIN = "the file was changed or cut since; start again, and it is indexed anew"
PLACES = ("shard", "offsets", "lengths")  # columns that an Index lacks


class Format(NamedTuple):
    """A format of packed sets: what finds the files that data.root names, and what reads their records.

    `prepare`: what makes other files of them first, where images cannot be read out of these.
    """

    find: Callable[[str], Found]
    read: Callable[[Found, Keys], Contents]
    prepare: Callable[[Found, Keys, bool], Found] | None = None


FORMATS: dict[str, Format] = {
    "wds": Format(tars.find, tars.read),
    "tfrecord": Format(tfrecords.find, tfrecords.read),
    "hfds": Format(arrow.find, arrow.read),
    "imagenet": Format(imagenet.find, imagenet.read),
    "parquet": Format(parquet.find, arrow.read, parquet.prepare),
}


@dataclass(frozen=True)
class PackedSet:
    """A packed set as data.root names it: the format, the place, and where a record's image and label stand."""

    kind: str
    place: str
    keys: Keys = NO_KEYS

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


@dataclass(frozen=True, eq=False)
class PackedIndex(Index):
    """An index whose images lie in larger files. shard, offsets, lengths [N]: which of `files`, where, how many bytes.

    Shard OWN_FILE: a file of its own, at the path of the row. Damaged images may have length 0.
    """

    shard: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    files: ShardFiles

    def encoded(self, id: int) -> npt.NDArray[np.uint8]:
        """The bytes of the file of image `id`, [length]."""
        if self.shard[id] == OWN_FILE:
            return read_image_file(self.path(id))[0]
        return self.files.read(int(self.shard[id]), int(self.offsets[id]), int(self.lengths[id]))


def load_packed(
    packed: PackedSet,
    *,
    exif: str = "ignore",
    cache: Path | None = None,
    threads: int = 8,
    progress: bool = False,
    class_map: Path | None = None,
) -> PackedIndex:
    """The index of a packed set, from the cache when its files are as they were; DataError when it cannot be used."""
    found, files = opened(packed, progress)
    identity = _identity(packed, found, exif, class_map)
    file = (cache or cache_dir() / "packed") / f"{hashlib.sha256(repr((packed, exif)).encode()).hexdigest()[:24]}.npz"
    if (cached := _read_cache(file, found.root, identity)) is None:
        contents = FORMATS[packed.kind].read(found, packed.keys)
        table, said = _table(packed, found.root, contents, ClassMap(class_map))
        fill_in(table, files, exif, threads, progress)
        _write_cache(file, table, said, identity)
    else:
        table, said = cached
    for text in said:
        warnings.warn(text, stacklevel=2)
    return PackedIndex(**table, files=files)


def opened(packed: PackedSet, progress: bool) -> tuple[Found, ShardFiles]:
    """The files of a packed set, those made of it first where images cannot be read out of it; DataError for none."""
    format = FORMATS[packed.kind]
    found = format.find(packed.place)
    if not found.files:
        raise DataError(f"data.root: {packed}: no file of this format there; correct the path, or the word before it")
    if format.prepare is not None:
        found = format.prepare(found, packed.keys, progress)
    sizes = {str(one.path): one.path.stat().st_size for one in found.files}
    _make_room(len(sizes))
    return found, ShardFiles(Path("/"), sizes, mapped=False, remedy=AGAIN)


def _make_room(files: int) -> None:
    """Raises the soft limit on opened files, up to the hard one, where so many more would come near it.

    ImageNet in TFRecords is 1,152 files, and 1,024 a usual limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + 512  # what else a run has opened
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _identity(packed: PackedSet, found: Found, exif: str, class_map: Path | None) -> str:
    """What changes where an index has to be made anew."""
    paths = [
        *(one.path for one in found.files),
        *found.beside,
        *([] if class_map is None else [class_map.expanduser()]),
    ]
    try:
        stats = [(str(path), seen.st_size, seen.st_mtime_ns) for path in paths for seen in [path.stat()]]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); repair it or correct the path") from error
    named = [(one.name, one.split) for one in found.files]
    return hashlib.sha256(repr((VERSION, packed, exif, stats, named)).encode()).hexdigest()


def _table(packed: PackedSet, root: Path, contents: Contents, names: ClassMap) -> tuple[dict[str, Any], list[str]]:
    """The columns of a PackedIndex, images not looked at yet, and what is to be said of it at every start."""
    records, said = _labelled(packed, contents)
    records = _mapped(records, names, said)
    roles = roles_of(str(packed), {record.split for record in records})
    again = Counter(record.name for record in records)
    refuse(packed, (name for name, n in again.items() if n > 1), "images of one name", "rename one of the files")
    declared = contents.classes if names.file is None else None
    classes = declared or _classes_of(packed, records, roles)
    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place[record.label or ""] for record in records], np.int64)
    folders = np.array([roles[record.split] for record in records], np.uint8)
    return {"root": root, "classes": classes, "labels": labels, "folders": folders, **columns(records)}, said


def columns(records: Sequence[Record]) -> dict[str, Any]:
    """The columns of a PackedIndex that only say where the images are; what `fill_in` finds out is 0."""
    count = len(records)
    return {
        "paths": PathTable.of([os.fsencode(record.name) for record in records]),
        "heights": np.zeros(count, np.int32),
        "widths": np.zeros(count, np.int32),
        "status": np.zeros(count, np.uint8),
        "reasons": {},
        "shard": np.array([record.file for record in records], np.int32),
        "offsets": np.array([record.offset for record in records], np.int64),
        "lengths": np.array([record.length for record in records], np.int64),
    }


def _labelled(packed: PackedSet, contents: Contents) -> tuple[list[Record], list[str]]:
    """The records that have labels, and which splits are left out, for none of theirs has; DataError for gaps."""
    bare = Counter(record.split for record in contents.records if record.label is None)
    count = Counter(record.split for record in contents.records)
    without = [split for split in bare if bare[split] == count[split]]
    if len(without) == len(count):
        text = f"data.root: {packed}: no label in any of {len(contents.records)} images; looked for {contents.wanted}"
        raise DataError(f"{text}; name where it stands in data.target_key, or write labels")
    gaps = (record.name for record in contents.records if record.label is None and record.split not in without)
    refuse(packed, gaps, f"images without a label ({contents.wanted})", "write their labels, or leave them out")
    said = [
        f"{packed}: the split {split} is left out, for its {count[split]} images have no labels" for split in without
    ]
    return [record for record in contents.records if record.label is not None], said


def _mapped(records: list[Record], names: ClassMap, said: list[str]) -> list[Record]:
    """The records under the names of a class map, without those that it leaves out, which are added to `said`."""
    new = {label: names.of(label) for label in dict.fromkeys(record.label or "" for record in records)}
    names.check_met()
    names.left_out.update(record.label or "" for record in records if not new[record.label or ""])
    if names.said():
        said.append(f"data.class_map leaves out {names.said()}")
    mapped = (record._replace(label=new[record.label or ""]) for record in records)
    return [record for record in mapped if record.label]


def _classes_of(packed: PackedSet, records: list[Record], roles: dict[str, Folder]) -> tuple[str, ...]:
    """The classes of the training images, by number where all are numbers, else by name; DataError for others."""
    classes = classes_in_order({record.label or "" for record in records if roles[record.split] <= Folder.TRAIN})
    if len(classes) < 2:
        found = f"classes of the training images: {some(classes) or 'none'}"
        raise DataError(f"data.root: {packed}: {found}; at least two are needed; does data.target_key name the label?")
    known = set(classes)
    other = (f"{record.name} ({record.label})" for record in records if record.label not in known)
    refuse(packed, other, "images of a class that no training image has", "leave them out by a data.class_map")
    return classes


class Stretch(io.RawIOBase):
    """A part of a file as a file, for Pillow to look at."""

    def __init__(self, files: ShardFiles, file: int, offset: int, length: int) -> None:
        self._files, self._file, self._begin, self._length, self._at = files, file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        if count:
            buffer[:count] = self._files.read(self._file, self._begin + self._at, count).data
        self._at += count
        return count


def fill_in(table: dict[str, Any], files: ShardFiles, exif: str, threads: int, progress: bool) -> None:
    """Fills in sizes and damage of all images of the table."""
    top, paths = os.fsencode(table["root"]), table["paths"]

    def one(row: int) -> Header:
        file, offset, length = (int(table[name][row]) for name in PLACES)
        if file == OWN_FILE:
            return screen(os.path.join(top, paths[row]), exif)
        return screen_stretch(io.BufferedReader(Stretch(files, file, offset, length)), length, exif)

    text = f"index: reading {len(paths):,} images" if progress else ""
    headers = table_of(screen_each(one, range(len(paths)), threads, text), len(paths))
    table |= headers._asdict()


def _write_cache(file: Path, table: dict[str, Any], said: list[str], identity: str) -> None:
    """Replaces the cache file in one step: processes that race write the same table."""
    places = {name: table[name] for name in PLACES}
    arrays = to_arrays(Index(**{name: column for name, column in table.items() if name not in PLACES})) | places
    arrays |= text_arrays({"said": PathTable.of([os.fsencode(text) for text in said])})
    out = io.BytesIO()
    np.savez(out, **arrays, identity=np.array(identity))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, out.getvalue())
    except OSError as error:
        text = f"the index of {table['root']} is not cached ({error}); set FASTAUG_CACHE to a folder with room"
        warnings.warn(text, stacklevel=3)


def _read_cache(file: Path, root: Path, identity: str) -> tuple[dict[str, Any], list[str]] | None:
    """The table in the cache and what is to be said; None without one of these files that is whole."""
    try:
        with open_npz(file) as z:
            if str(z["identity"]) != identity:
                return None
            table = from_arrays(z, root) | {name: z[name] for name in PLACES}
            return table, [os.fsdecode(text) for text in texts_of(z, "said")]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BROKEN as error:
        tell_broken(file, error)
        return None

"""The layout of a shard folder, and the index of one. docs/shards.md describes it for readers of other software.

`shards.json` (Manifest) says how and of what the folder was made and lists the tar files with size and SHA-256.
`index.npz` is the table of the original index with the extents as stored, and where each image's bytes lie.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.data.broken_arrays import BROKEN
from fastaug.data.image_files import MAX_PIXELS, Colour, colour_of
from fastaug.data.image_headers import Status
from fastaug.data.index import COLUMNS, Folder, from_arrays
from fastaug.data.packed.index import PLACES, PackedIndex
from fastaug.data.shards.files import AGAIN, ShardFiles
from fastaug.errors import DataError

MANIFEST, TABLE = "shards.json", "index.npz"
VERSION = 1
FORMATS = ("jpeg", "raw")


@dataclass(frozen=True)
class Settings:
    """How shards store images. `quality` of JPEGs written, None for raw; `shard_size` images at most in a tar file.

    shard_size None: 4,096, which is about 1 GB of raw images at short side 256, or more where that made over 500 files.
    """

    format: str
    short_side: int  # pixels; smaller images keep their size
    quality: int | None
    shard_size: int | None
    exif: str  # as data.exif
    background: Colour | None = None  # as data.background

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format = {self.format!r}: must be one of {', '.join(FORMATS)}")
        sound = self.quality is None if self.format == "raw" else self.quality in range(1, 101)
        if not sound:
            raise ValueError(f"quality = {self.quality} with format = {self.format}: 1 to 100 for jpeg, none for raw")
        for name in ("short_side", "shard_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")

    def pixels(self) -> bytes:
        """What tells the pixels of two shard folders of the same source apart."""
        seen = () if self.background is None else (self.background,)
        return repr((self.format, self.short_side, self.quality, self.exif, *seen)).encode()


@dataclass(frozen=True)
class Source:
    """The data set that was made into shards: its folder, its number of images, SHA-256 of the columns of its index."""

    root: str
    images: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar file: how many images it holds, how many of its ids are damaged, were resized or copied unchanged."""

    name: str
    images: int
    damaged: int
    resized: int
    copied: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The manifest of a shard folder, shards.json. `table`: SHA-256 of index.npz, "" while it is being made."""

    settings: Settings
    source: Source
    shards: tuple[Shard, ...] = ()
    table: str = ""
    version: int = VERSION

    def to_json(self) -> bytes:
        """The contents of shards.json."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def is_shard_folder(root: Path) -> bool:
    """Whether `root` is, or is about to become, a shard folder."""
    return (root.expanduser() / MANIFEST).is_file()


def read_manifest(root: Path) -> Manifest:
    """The manifest of a shard folder, finished or not; DataError when it cannot be used."""
    file = root / MANIFEST
    try:
        values = json.loads(file.read_bytes())
        if values["version"] != VERSION:
            raise DataError(f"{file}: version {values['version']}, this program reads {VERSION}; make the shards again")
        settings, source = Settings(**values["settings"]), Source(**values["source"])
        if settings.background is not None:
            settings = replace(settings, background=colour_of(settings.background))
        shards = tuple(Shard(**shard) for shard in values["shards"])
        if any(Path(shard.name).name != shard.name or not shard.name.isprintable() for shard in shards):
            raise ValueError("a name of a file elsewhere, or that no file has")
        if any(type(n) is not int or not 0 <= n < 2**63 for n in (source.images, *(shard.bytes for shard in shards))):
            raise ValueError("a size or number of images that is no whole number of 63 bits")
        return Manifest(settings, source, shards, values["table"])
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); {AGAIN}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: no manifest of shards ({error!r}); {AGAIN}") from error


@dataclass(frozen=True, eq=False)
class ShardIndex(PackedIndex):
    """The index of a shard folder: ids, order, labels and splits of the source, extents as stored in the shards.

    shard, offsets, lengths [N]: where the JPEG file, or the pixels (row by row, RGB), of an image lie; the tar file's
    position in `shards`. Damaged images have length 0.
    """

    settings: Settings
    shards: tuple[Shard, ...]

    def path(self, id: int) -> bytes:
        """For messages: tar file and the original path."""
        name = os.fsencode(self.shards[self.shard[id]].name)
        return os.path.join(os.fsencode(self.root), name) + b":" + self.paths[id]

    def pixels(self, id: int, top: int, left: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """A window of the raw image `id`: [height, width, 3], read-only, rows not adjacent."""
        across = int(self.widths[id])
        begin = int(self.offsets[id]) + top * across * 3
        rows = self.files.view(int(self.shard[id]), begin, height * across * 3)
        return rows.reshape(height, across, 3)[:, left : left + width]


def open_shards(root: str | Path, exif: str | None = None, background: Colour | None = None) -> ShardIndex:
    """The index of a finished shard folder; DataError when a file is missing, of another size, or made otherwise.

    With `exif` as data.exif and data.background; None: whatever they were made with. Sizes are checked here, contents
    by writer.verify.
    """
    root = Path(root).expanduser().resolve()
    manifest = read_manifest(root)
    if not manifest.table:
        raise DataError(f"data.root: {root} is being made or was left unfinished; {AGAIN}")
    made = manifest.settings.exif
    if exif not in (None, made):
        raise DataError(f"data.root: {root} was made with --exif {made}; set data.exif={made}, or make it again")
    if exif is not None and background != (behind := manifest.settings.background):
        text = "without a background" if behind is None else f"on the background {list(behind)}"
        remedy = f"set data.background={'null' if behind is None else list(behind)}, or make it again"
        raise DataError(f"data.root: {root} was made {text}; {remedy}")
    table = read_table(root, manifest)
    sizes = {shard.name: shard.bytes for shard in manifest.shards}
    files = ShardFiles(root, sizes, mapped=manifest.settings.format == "raw")
    return ShardIndex(**table, settings=manifest.settings, shards=manifest.shards, files=files)


_TYPES = {
    **{"labels": np.int64, "heights": np.int32, "widths": np.int32, "status": np.uint8, "folders": np.uint8},
    **{"shard": np.int32, "offsets": np.int64, "lengths": np.int64},
}


def read_table(root: Path, manifest: Manifest) -> dict[str, Any]:
    """The columns of index.npz with those of an Index in its form; DataError unless it is the one of the manifest."""
    file = root / TABLE
    try:
        with open(file, "rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != manifest.table:
                raise DataError(f"{file}: not the table that {MANIFEST} names; {AGAIN}")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as z:
                table = from_arrays(z, root) | {name: z[name] for name in PLACES}
        problem = _problem_of(table, manifest)
    except BROKEN as error:
        raise DataError(f"{file} cannot be read ({error}); {AGAIN}") from error
    if problem:
        raise DataError(f"{file}: {problem}; {AGAIN}")
    return table | {name: table[name].astype(kind) for name, kind in _TYPES.items()}


def _problem_of(table: dict[str, Any], manifest: Manifest) -> str:
    """What is impossible about a table, whoever wrote it; "" when nothing is. What passes is inside its tar files."""
    count = manifest.source.images
    for name in (*COLUMNS, *PLACES):
        if table[name].shape != (count,) or table[name].dtype.kind not in "iu":
            return f"column {name} is not {count} integers"
    if len(table["paths"]) != count or not table["paths"].sound():
        return f"not the paths of {count} images"
    limits = {
        "labels": len(table["classes"]),
        "status": len(Status),
        "folders": len(Folder),
        "shard": len(manifest.shards),
    }
    for name, limit in limits.items():
        if count and not 0 <= int(table[name].min()) <= int(table[name].max()) < limit:
            return f"column {name} has values outside [0, {limit})"
    good = table["status"] == Status.OK
    if set(table["reasons"]) != set(np.flatnonzero(~good).tolist()):
        return "not every damaged image has its reason"
    height, width, offset, length = (
        table[n].astype(np.int64)[good] for n in ("heights", "widths", "offsets", "lengths")
    )
    ends = np.array([shard.bytes for shard in manifest.shards], dtype=np.int64)[table["shard"][good]]
    if not ((height > 0) & (width > 0) & (height * width <= MAX_PIXELS)).all():
        return "an image has no size, or one that is too large"
    if not ((offset >= 0) & (length > 0) & (offset <= ends) & (length <= ends - offset)).all():
        return "an image lies outside its tar file"
    if manifest.settings.format == "raw" and not (length == 3 * height * width).all():
        return "an image has more or fewer bytes than its size says"
    return ""

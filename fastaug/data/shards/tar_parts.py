"""One tar file of a shard folder: which ids it is planned for, its writing, what is known of it, its checks."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.atomic_files import sync_folder, write_atomically
from fastaug.data.index import Folder, Index
from fastaug.data.shards.encode import Picture
from fastaug.data.shards.layout import Shard
from fastaug.seeding import Key, Stream, permuted

PARTS = "parts"  # folder of Parts while a shard folder is being made
SUFFIX = {"jpeg": "jpg", "raw": "npy"}
ORDER_KEY = Key(seed=0, epoch=0, stream=Stream.ORDER)  # constant: the same index always gives the same shards
SHARDS = 500  # about as many at most: every process holds all of them open


class Planned(NamedTuple):
    """A planned tar file, and the ids of its images in their order."""

    name: str
    ids: npt.NDArray[np.int64]


def plan(index: Index, size: int | None) -> list[Planned]:
    """Tar files of nearly equal numbers of at most `size` images (None: Settings says), split folders apart.

    Training images are mixed over all of them, once, for readers that can only stream; the rest stay in order.
    """
    size = size or max(4096, -(-len(index) // SHARDS))
    planned = []
    for folder in Folder:
        ids = np.flatnonzero(index.folders == folder)
        if folder in (Folder.ALL, Folder.TRAIN):
            ids = permuted(ORDER_KEY, ids)
        for number, piece in enumerate(np.array_split(ids, -(-len(ids) // size)) if len(ids) else []):
            planned.append(Planned(f"{folder.name.lower()}-{number:05d}.tar", piece))
    return planned


@dataclass(frozen=True)
class Part:
    """A finished tar file of a shard folder, and what the index has to know of its ids, in the order of the plan."""

    shard: Shard
    heights: list[int]
    widths: list[int]
    offsets: list[int]
    lengths: list[int]
    reasons: dict[int, str]  # id -> why it is damaged

    def save(self, folder: Path) -> None:
        """Below `folder`, whole or not at all."""
        write_atomically(folder / PARTS / f"{self.shard.name}.json", json.dumps(asdict(self)).encode())


def load_part(folder: Path, name: str) -> Part | None:
    """The Part saved for the tar file `name`; None without one that can be read."""
    try:
        values = json.loads((folder / PARTS / f"{name}.json").read_bytes())
        reasons = {int(id): text for id, text in values.pop("reasons").items()}
        return Part(Shard(**values.pop("shard")), reasons=reasons, **values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def part_of(table: dict[str, Any], shard: Shard, ids: npt.NDArray[np.int64]) -> Part:
    """The Part of a tar file out of the table of a finished folder."""
    columns = {name: table[name][ids].tolist() for name in ("heights", "widths", "offsets", "lengths")}
    reasons = {id: table["reasons"][id] for id in ids.tolist() if id in table["reasons"]}
    return Part(shard, reasons=reasons, **columns)


def problem_of(folder: Path, shard: Shard) -> str:
    """What is wrong with a tar file, its contents read; "" when nothing."""
    try:
        with open(folder / shard.name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.bytes:
                return f"{size} bytes, not {shard.bytes}: truncated or altered"
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                return "its SHA-256 is not the one that was written: altered"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


class _Hashed:
    """A file as tarfile writes one, with the digest of what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()


def write_tar(folder: Path, name: str, format: str, labels: npt.NDArray[np.int64], pictures: Iterable[Picture]) -> Part:
    """The tar file `name` of `pictures`: ID.jpg or ID.npy with ID.cls, its label. It appears whole or not at all."""
    temporary = folder / f".{name}.tmp"
    try:
        with open(temporary, "wb") as file:
            part = _fill(file, name, format, labels, pictures)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)  # gone already after the rename
    sync_folder(folder)
    return part


def _fill(file: IO[bytes], name: str, format: str, labels: npt.NDArray[np.int64], pictures: Iterable[Picture]) -> Part:
    rows: list[tuple[int, int, int, int]] = []
    reasons: dict[int, str] = {}
    resized = copied = 0
    hashed = _Hashed(file)
    with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
        for picture in pictures:
            offset = length = 0
            if picture.reason:
                reasons[picture.id] = picture.reason
            else:
                offset = _add(tar, hashed, f"{picture.id:09d}.{SUFFIX[format]}", picture.payload) + picture.start
                length = len(picture.payload) - picture.start
                _add(tar, hashed, f"{picture.id:09d}.cls", b"%d" % labels[picture.id])
            rows.append((picture.height, picture.width, offset, length))
            resized, copied = resized + picture.resized, copied + picture.copied
    digest = hashed.digest.hexdigest()
    shard = Shard(name, len(rows) - len(reasons), len(reasons), resized, copied, file.tell(), digest)
    heights, widths, offsets, lengths = (list(column) for column in zip(*rows, strict=True))
    return Part(shard, heights, widths, offsets, lengths, reasons)


def _add(tar: tarfile.TarFile, file: _Hashed, name: str, payload: bytes) -> int:
    """Where the member's contents begin."""
    member = tarfile.TarInfo(name)  # owner and time 0: the same images give the same bytes
    member.size = len(payload)
    begin = file.tell() + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(payload))
    return begin

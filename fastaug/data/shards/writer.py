"""Writes the shard folder of an index: in parallel, resumable after a kill, never over shards of another making."""

import fcntl
import hashlib
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fastaug.atomic_files import write_atomically
from fastaug.console import Bar, Console
from fastaug.data.image_headers import Status
from fastaug.data.index import Index, to_arrays
from fastaug.data.loaders.prefetch import ahead
from fastaug.data.shards.encode import BATCH, Picture, Preparer
from fastaug.data.shards.layout import (
    MANIFEST,
    TABLE,
    Manifest,
    Settings,
    ShardIndex,
    Source,
    is_shard_folder,
    read_manifest,
    read_table,
)
from fastaug.data.shards.tar_parts import PARTS, Part, Planned, load_part, part_of, plan, problem_of, write_tar
from fastaug.errors import NO_SPACE, DataError, StorageError


def make_shards(index: Index, out: Path, settings: Settings, *, workers: int, console: Console) -> Manifest:
    """The images of `index` as shards in the folder `out`; finished tar files of an earlier start are kept.

    DataError when `out` holds something else or the shards of another source or other settings; StorageError when it
    cannot be written.
    """
    out = out.expanduser().resolve()
    if out.is_relative_to(index.root):
        raise DataError(f"{out} lies inside {index.root}, whose images it is made of; choose a folder elsewhere")
    wanted = Manifest(settings, _source_of(index))
    planned = plan(index, settings.shard_size)
    try:
        with _claimed(out):
            stored = _stored(out, wanted)
            done = _intact(out, stored, planned, workers, console)
            if stored.table and len(done) == len(planned):
                return stored
            write_atomically(out / MANIFEST, wanted.to_json())
            (out / PARTS).mkdir(exist_ok=True)
            for part in done.values():
                part.save(out)
            _write(out, index, settings, planned, done, workers, console)
            return _finish(out, index, wanted, planned, done)
    except OSError as error:
        full = "free space and give the same command again: what is finished is kept"
        remedy = full if error.errno in NO_SPACE else "choose another folder, or repair its permissions"
        raise StorageError(f"{out} cannot be written ({error}); {remedy}") from error


def verify(out: Path, *, workers: int, console: Console) -> dict[str, str]:
    """Tar file -> what is wrong with it, of a finished shard folder, every byte read; empty when nothing is."""
    manifest = read_manifest(out)
    if not manifest.table:
        raise DataError(f"{out} was left unfinished; give the command that made it again")
    read_table(out, manifest)
    with console.bar("verifying", len(manifest.shards)) as bar:
        found = {}
        for shard, problem in zip(
            manifest.shards,
            ahead(lambda shard: problem_of(out, shard), manifest.shards, 2 * workers, workers),
            strict=True,
        ):
            found[shard.name] = problem
            bar.advance()
    return {name: problem for name, problem in found.items() if problem}


def counts(index: ShardIndex) -> dict[str, str]:
    """What became of the images, for a summary."""
    sums = {name: sum(getattr(s, name) for s in index.shards) for name in ("images", "resized", "copied", "damaged")}
    rows = {name: f"{sums[name]:,}" for name in ("images", "resized", "copied")}
    rows["encoded at their size"] = f"{sums['images'] - sums['resized'] - sums['copied']:,}"
    rows |= {"damaged": f"{sums['damaged']:,}", "of": f"{len(index):,}", "shards": f"{len(index.shards):,}"}
    return rows | {"bytes": f"{sum(shard.bytes for shard in index.shards):,}"}


def _source_of(index: Index) -> Source:
    digest = hashlib.sha256()
    for name, column in sorted(to_arrays(index).items()):
        digest.update(name.encode() + column.tobytes())
    return Source(str(index.root).encode(errors="backslashreplace").decode(), len(index), digest.hexdigest())


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Creates the folder and keeps other makers out of it."""
    if out.is_dir() and not is_shard_folder(out) and any(path.name != ".lock" for path in out.iterdir()):
        raise DataError(f"{out} is not empty and holds no shards; choose another folder or empty it")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{out} is being made by another process; wait for it") from None
        for left in chain(out.glob(".*.tmp"), (out / PARTS).glob(".*.tmp")):
            left.unlink()  # half-written when a process was killed
        yield


def _stored(out: Path, wanted: Manifest) -> Manifest:
    """The manifest that lies in `out`, or `wanted` in an empty folder; DataError when they do not agree."""
    if not is_shard_folder(out):
        return wanted
    stored = read_manifest(out)
    old, new = (asdict(made.settings) | asdict(made.source) for made in (stored, wanted))
    changed = [f"{name} {old[name]!r}, not {new[name]!r}" for name in old if old[name] != new[name]]
    if changed:
        raise DataError(
            f"{out} holds shards made with {'; '.join(changed)}; give what they were made with, choose another folder, "
            "or delete this one"
        )
    return stored


def _intact(out: Path, stored: Manifest, planned: Sequence[Planned], workers: int, console: Console) -> dict[str, Part]:
    """The tar files in `out` that are finished and, every byte read, as they were written."""
    parts = _parts(out, stored, planned, console)
    done = {}
    with console.bar("checking what is there", len(parts)) as bar:
        problems = ahead(lambda part: problem_of(out, part.shard), parts, 2 * workers, workers)
        for part, problem in zip(parts, problems, strict=True):
            bar.advance()
            if problem:
                console.print(f"{out / part.shard.name}: {problem}; written again")
            else:
                done[part.shard.name] = part
    return done


def _parts(out: Path, stored: Manifest, planned: Sequence[Planned], console: Console) -> list[Part]:
    """What is known of the tar files in `out`."""
    if not stored.table:
        return [part for part in (load_part(out, name) for name, _ in planned) if part]
    try:
        table = read_table(out, stored)
    except DataError as error:
        console.print(f"{error}: every shard is written again")
        return []
    return [part_of(table, shard, ids) for shard, (_, ids) in zip(stored.shards, planned, strict=True)]


def _write(
    out: Path,
    index: Index,
    settings: Settings,
    planned: Sequence[Planned],
    done: dict[str, Part],
    workers: int,
    console: Console,
) -> None:
    """Writes the tar files that are not in `done` and adds them; they are written in turn, their images in parallel."""
    missing = [shard for shard in planned if shard.name not in done]
    pieces = [shard.ids[i : i + BATCH] for shard in missing for i in range(0, len(shard.ids), BATCH)]
    kept = sum(len(part.heights) for part in done.values())
    made = ahead(Preparer(index, settings), pieces, 2 * workers, workers)
    with console.bar("images", len(index), kept) as bar:
        for name, ids in missing:
            pictures = chain.from_iterable(islice(made, -(-len(ids) // BATCH)))
            part = write_tar(out, name, settings.format, index.labels, _counted(pictures, bar))
            part.save(out)
            done[name] = part


def _counted(pictures: Iterator[Picture], bar: Bar) -> Iterator[Picture]:
    for picture in pictures:
        yield picture
        bar.advance()


def _finish(out: Path, index: Index, wanted: Manifest, planned: Sequence[Planned], done: dict[str, Part]) -> Manifest:
    """Writes the table and, last, the manifest that names it."""
    columns = {name: np.zeros(len(index), np.int64) for name in ("heights", "widths", "offsets", "lengths", "shard")}
    reasons: dict[int, str] = {}
    for number, (name, ids) in enumerate(planned):
        part = done[name]
        for column in ("heights", "widths", "offsets", "lengths"):
            columns[column][ids] = getattr(part, column)
        columns["shard"][ids] = number
        reasons |= part.reasons
    status = np.zeros_like(index.status)
    status[list(reasons)] = Status.DAMAGED
    heights, widths = (columns.pop(name).astype(np.int32) for name in ("heights", "widths"))
    columns["shard"] = columns["shard"].astype(np.int32)
    stored = replace(index, heights=heights, widths=widths, status=status, reasons=dict(sorted(reasons.items())))
    table = io.BytesIO()
    np.savez(table, **to_arrays(stored), **columns)  # type: ignore[arg-type]
    write_atomically(out / TABLE, table.getvalue())
    shards = tuple(done[name].shard for name, _ in planned)
    manifest = replace(wanted, shards=shards, table=hashlib.sha256(table.getvalue()).hexdigest())
    write_atomically(out / MANIFEST, manifest.to_json())
    shutil.rmtree(out / PARTS)
    return manifest

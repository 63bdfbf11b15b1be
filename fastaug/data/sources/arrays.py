"""Data sets published as arrays, written once as class folders of PNG files that the index and the loaders take.

`cifar10:PATH`, `cifar100:PATH`, `mnist:PATH` and `svhn:PATH` as data.root: PATH is the folder of the published files,
its parent, or the archive as downloaded. The set becomes {train,test}/CLASS/NNNNN.png in cache_dir()/"arrays", pixels
unchanged, NNNNN = row in the source (CIFAR-10's five batches count on). Labels are the source's own numbers. A copy is
known by its place and its files' names, sizes and modification times; what was made of an older one may be deleted by
hand.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from fastaug.data.index import cache_dir
from fastaug.data.sources.array_files import ArraySet, Layout, on_disk, read_archive, read_folder
from fastaug.data.sources.cifar import CIFAR10, CIFAR100
from fastaug.data.sources.idx import MNIST
from fastaug.data.sources.materialized import make_once, write_pngs
from fastaug.data.sources.published import listed, refuse_other_counts, refuse_other_files
from fastaug.data.sources.svhn import SVHN
from fastaug.errors import DataError

KINDS: dict[str, tuple[Layout, ...]] = {"cifar10": CIFAR10, "cifar100": CIFAR100, "mnist": MNIST, "svhn": SVHN}
VERSION = 2  # of what is written


def materialize_arrays(
    kind: str,
    source: str | Path,
    cache: Path | None = None,
    progress: bool = False,
    threads: int = 8,
    *,
    verify: bool = False,
) -> Path:
    """The data root of the set `kind` at `source`, below `cache` (default cache_dir()/"arrays"); written when absent.

    It appears complete or not at all, see materialized.make_once. DataError for missing, truncated or wrong files, with
    `verify` also for others than published (published.py); StorageError when the cache cannot be written.
    """
    place, layout = _find(kind, Path(source).expanduser().resolve())

    def write(folder: Path) -> None:
        if verify:
            refuse_other_files(kind, _files(place, layout))
        found = _read(kind, place, layout)
        if verify:
            refuse_other_counts(kind, place, len(found.train.labels), len(found.test.labels))
        for name, part in (("train", found.train), ("test", found.test)):
            labels = part.labels.tolist()
            names = [f"{name}/{found.classes[label]}/{row:05d}.png" for row, label in enumerate(labels)]
            write_pngs(folder, names, part.images, text=f"{kind} {name}", threads=threads, progress=progress)

    return make_once((cache or cache_dir() / "arrays") / f"{kind}-{_identity(place, layout, verify)}", write)


def _missing(folder: Path, layout: Layout) -> list[str]:
    return [name for name in layout.files if on_disk(folder, name) is None]


def _find(kind: str, path: Path) -> tuple[Path, Layout | None]:
    """A folder and what it holds, or an archive, whose contents are not known before it is read."""
    archives = [path / layout.archive for layout in KINDS[kind] if layout.archive]
    if not os.path.exists(path):
        raise DataError(f"data.root: {kind}:{path} does not exist or cannot be reached; correct the path")
    if archives and os.path.isfile(path):
        return path, None
    places = [(path / below, layout) for layout in KINDS[kind] for below in ("", *layout.folders)]
    folder, layout = min(places, key=lambda place: len(_missing(*place)))
    missing = _missing(folder, layout)
    if not missing:
        return folder, layout
    if archive := next(filter(os.path.isfile, archives), None):
        return archive, None
    if len(missing) < len(layout.files):
        raise DataError(f"{folder} lacks {listed(kind, missing)}; download the set again")
    raise DataError(f"data.root: {path} holds no {kind}; {_expected(kind)}")


def _expected(kind: str) -> str:
    texts = [", ".join(layout.files) if layout.archive else listed(kind, layout.files) for layout in KINDS[kind]]
    archives = [layout.archive for layout in KINDS[kind] if layout.archive]
    archive = f", or the archive {' or '.join(listed(kind, [name]) for name in archives)}" if archives else ""
    return f"name the folder of {' or '.join(texts)}, or its parent{archive}"


def _files(place: Path, layout: Layout | None) -> list[Path]:
    return [place] if layout is None else [on_disk(place, name) or place / name for name in layout.files]


def _identity(place: Path, layout: Layout | None, verify: bool) -> str:
    try:
        stats = [(os.fsencode(file), os.stat(file)) for file in _files(place, layout)]
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error}); repair it or correct data.root") from error
    seen = [(name, found.st_size, found.st_mtime_ns) for name, found in stats]
    return hashlib.sha256(repr((VERSION, seen, verify)).encode()).hexdigest()[:16]


def _read(kind: str, place: Path, layout: Layout | None) -> ArraySet:
    if layout is None:
        files = read_archive(place, {name for layout in KINDS[kind] for name in layout.files})
        layout = min(KINDS[kind], key=lambda one: len(set(one.files) - set(files.contents)))
        if missing := [name for name in layout.files if name not in files.contents]:
            raise DataError(f"{place} lacks {', '.join(missing)}; {_expected(kind)}")
    else:
        files = read_folder(place, layout.files)
    found = layout.parse(files)
    for name, part in (("train", found.train), ("test", found.test)):
        counts = np.bincount(part.labels, minlength=len(found.classes))
        if not counts.all():
            lacking = found.classes[int(counts.argmin())]
            raise DataError(f"{place}: no {name} image of class {lacking}; download the set again")
    return found

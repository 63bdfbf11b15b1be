"""The index of sets up to the size of ImageNet-21k: 100,000, 1,000,000 and 14,000,000 files.

Seconds, and the peak of memory, of a process that makes the index, of one that starts with it in the cache (index,
splits, fingerprint of the data, order and requests of an epoch), and of one that writes a checkpoint of all that it has
for single images where no table is learned (the statistics of run.sample_record). At the largest size a start may take
20 s, the order of an epoch 5 s, and every process 4 GiB; between two sizes the exponent of n is at most 1.1, in
processor seconds.

The images are hard links to 256 files: what a slow disk adds is not in these figures. 14,000,000 links are made in some
twenty minutes and take 1 GB of disk; --folders keeps them. With --order there are no folders, and measured are order
and requests of an epoch of made-up ids alone, in seconds. `--part lists files1281167` reads files of data.splits
and data.labels of made-up paths: seconds, and the MiB that it has at one time beside the index.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth import Laps, figures_of, measured, run_part, show
from benchmarks.photo_folder import make_photo_folder

SIZES = (100_000, 1_000_000, 14_000_000)
CLASSES = 21_841  # of ImageNet-21k
PREFIX = "files"  # of a folder's name, the number of its images behind it
EXPONENT, START, ORDER, PEAK = 1.1, 20.0, 5.0, 4096.0  # at most; seconds, seconds, MiB
OF_ORDER = ("epoch order", "epoch requests")
PHASES = ("index made", "index from cache", "splits", "fingerprint", *OF_ORDER, "checkpoint")


def run_make(root: Path) -> dict[str, Any]:
    """Makes the index of a folder that has no cache."""
    from fastaug.data.index import load_index

    laps = Laps()
    laps.lap("index made", lambda: load_index(root, progress=True))
    return laps.report()


def run_start(root: Path) -> dict[str, Any]:
    """Starts with the index in the cache, and orders an epoch."""
    from fastaug.data.build import DataParts
    from fastaug.data.index import load_index
    from fastaug.data.splits import make_splits

    laps = Laps()
    index = laps.lap("index from cache", lambda: load_index(root))
    splits = laps.lap("splits", lambda: make_splits(index, seed=0, test=0.1, meta=0.1))
    laps.lap("fingerprint", DataParts(index.classes, splits, index).fingerprint)
    _order(laps, splits.train)
    return laps.report()


def run_order(root: Path) -> dict[str, Any]:
    """Orders an epoch of four fifths of as many ids as the folder's name says; the folder need not be there."""
    import numpy as np

    laps, size = Laps(), int(root.name.removeprefix(PREFIX))
    _order(laps, np.flatnonzero(np.random.default_rng(0).random(size) < 0.8))
    return laps.report()


def _order(laps: Laps, ids: Any) -> None:
    from fastaug.data.sampler import Order

    order = Order(ids=ids, seed=0, batch_size=1024)
    laps.lap("epoch order", lambda: order.epoch_ids(0))
    laps.lap("epoch requests", lambda: sum(len(r.ids) for r in order.requests(0, order.steps_per_epoch)))


def run_lists(root: Path) -> dict[str, Any]:
    """Reads a list of as many images as the folder's name says, by path, and labels of nine tenths of them."""
    import numpy as np

    from fastaug.data.index import Index
    from fastaug.data.label_files import with_labels
    from fastaug.data.path_table import PathTable
    from fastaug.data.splits import Splits, make_splits

    laps, n, names = Laps(), int(root.name.removeprefix(PREFIX)), [f"n{label:08d}" for label in range(1000)]
    ids, zeros, sides, cut = np.arange(n), np.zeros(n, np.uint8), np.ones(n, np.int32), n * 9 // 10
    paths = [b"train/%s/%08d.JPEG" % (names[i * 1000 // n].encode(), i) for i in range(n)]
    index = Index(root, tuple(names), PathTable.of(paths), ids * 1000 // n, sides, sides, zeros, zeros, {})
    splits, beside = Splits(ids, ids[:0], ids[:0], ids[:0]), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.txt").write_bytes(b"\n".join(paths[:cut]))
        (folder / "test.txt").write_bytes(b"\n".join(paths[cut:]))
        (folder / "labels.tsv").write_bytes(b"".join(b"%s\tn00000000\n" % path for path in paths[:cut]))
        reads: dict[str, Callable[[], Any]] = {"splits": partial(make_splits, index, seed=0, files=folder)}
        reads["labels"] = partial(with_labels, index, splits, folder / "labels.tsv")
        for kind, read in reads.items():
            laps.lap(kind, read)
            tracemalloc.start()  # once more: it takes time
            read()
            beside[kind] = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
    return laps.report() | {"beside_mib": beside}


def run_checkpoint(root: Path) -> dict[str, Any]:
    """Writes the statistics of as many images as the folder's name says."""
    from accelerate import Accelerator

    from fastaug.evaluation.training_record import TrainingRecord
    from fastaug.training import checkpoint

    laps, size = Laps(), int(root.name.removeprefix(PREFIX))
    record = TrainingRecord(size, CLASSES, Accelerator(cpu=True), largest=1024)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        write = partial(checkpoint.save, Path(folder), 0, {"model": {}}, {"sample_record": record.state()})
        path = laps.lap("checkpoint", write)
        megabytes = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    return laps.report() | {"megabytes": megabytes}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "make": run_make,
    "start": run_start,
    "checkpoint": run_checkpoint,
}


def folder_of(work: Path, files: int, classes: int) -> Path:
    """The folder of so many images of at most so many `classes` below `work`, made where it is not there yet."""
    root = work / f"{PREFIX}{files}"
    if not root.is_dir():
        unfinished = work / f"unfinished{files}"
        make_photo_folder(unfinished, files, min(classes, files // 100))
        unfinished.rename(root)
    return root


def measure(work: Path, sizes: list[int], repetitions: int) -> dict[int, list[dict[str, Any]]]:
    """Every repetition of every size, each with an empty cache."""
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in sizes}
    for n in sizes:
        root = folder_of(work, n, CLASSES)
        for _ in range(repetitions):
            with tempfile.TemporaryDirectory(dir=work) as cache:
                runs = {part: measured(part, root, Path(cache), "benchmarks.large_index") for part in PARTS}
            seconds = {name: lap for run in runs.values() for name, lap in run["seconds"].items()}
            peaks = {part: run["peak_rss_mib"] for part, run in runs.items()}
            megabytes = runs["checkpoint"]["megabytes"]
            found[n].append({"seconds": seconds, "peak_rss_mib": peaks, "checkpoint_megabytes": megabytes})
    return found


def measure_order(sizes: list[int], repetitions: int) -> dict[int, list[dict[str, Any]]]:
    """The same of order and requests alone; the sizes take turns."""
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in sizes}
    for _ in range(repetitions):
        for n in sizes:
            found[n].append(measured("order", Path(f"{PREFIX}{n}"), Path(), "benchmarks.large_index"))
    return found


def summary_of_order(found: dict[int, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Gates and figures of order and requests alone."""
    figures = figures_of(found, OF_ORDER)
    gates = {f"{name} <= {EXPONENT}": figures[name] <= EXPONENT for name in figures if name.endswith("_exponent")}
    gates[f"epoch order < {ORDER} s"] = figures[f"epoch_order_{max(found)}_seconds"] < ORDER
    return {"gates": gates, "figures": figures}


def summary(found: dict[int, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Gates and figures."""
    largest = max(found)
    figures = figures_of(found, PHASES)
    figures["images_made_a_second"] = largest / figures[f"index_made_{largest}_seconds"]
    figures["checkpoint_megabytes"] = found[largest][0]["checkpoint_megabytes"]
    for n, runs in found.items():
        figures |= {f"peak_{part}_{n}_mib": max(run["peak_rss_mib"][part] for run in runs) for part in PARTS}
    exponents = {name: value for name, value in figures.items() if name.endswith("_exponent")}
    gates = {f"{name} <= {EXPONENT}": value <= EXPONENT for name, value in exponents.items()}
    gates[f"start from cache < {START} s"] = figures[f"index_from_cache_{largest}_seconds"] < START
    gates[f"epoch order < {ORDER} s"] = figures[f"epoch_order_{largest}_seconds"] < ORDER
    gates |= {f"peak of {part} < {PEAK} MiB": figures[f"peak_{part}_{largest}_mib"] < PEAK for part in PARTS}
    return {"gates": gates, "figures": figures}


def main() -> int:
    """0 when every gate holds, 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", metavar="N", default=SIZES, help="sizes, at least two")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--folders", type=Path, metavar="FOLDER", help="keeps the folders of images there")
    parser.add_argument("--order", action="store_true", help="order and requests of an epoch alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--part", nargs=2, metavar=("PART", "ROOT"), help="one measurement, run by the tool itself")
    args = parser.parse_args()
    if args.part:
        return run_part(parser, PARTS | {"order": run_order, "lists": run_lists}, *args.part)
    sizes = sorted(set(args.files))
    if len(sizes) < 2 or sizes[0] < 200 or args.repetitions < 1:
        parser.error("--files needs two different sizes of at least 200, --repetitions at least 1")
    if args.order and args.folders:
        parser.error("--order has no folders of images: leave out --folders")
    from fastaug.provenance import commit, versions

    if args.order:
        found = measure_order(sizes, args.repetitions)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(args.folders or Path(folder), sizes, args.repetitions)
    result = summary_of_order(found) if args.order else summary(found)
    show(found, result, OF_ORDER if args.order else PHASES)
    for name, value in result["figures"].items():
        if not name.endswith("_seconds"):
            print(f"{name}: {value:,.2f}")
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "versions": versions(), "commit": commit()}
        args.json.write_text(json.dumps({**about, "repetitions": found, **result}, indent=1) + "\n")
    return 0 if all(result["gates"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

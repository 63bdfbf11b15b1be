"""Growth with the number of files: index, splits, order and first batch of 5,000, 50,000 and 500,000 listed images.

Each time may grow no faster than the number of files: between two sizes the exponent of n is at most 1.15, in
processor seconds, medians of all repetitions. The first batch of the largest folder comes in less than 5 s with a
cached index, from the recipe to the batch, model and evaluation included, importing libraries not. The images are
hard links to a few files, in memory after the first reading: what a slow disk adds is not in these figures.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.photo_folder import make_photo_folder

SIZES = (5_000, 50_000, 500_000)
LARGEST_CLASSES = 1000
EXPONENT, FIRST_BATCH = 1.15, 5.0  # at most; seconds
SCALED = ("index uncached", "index cached", "splits", "epoch order", "epoch requests", "first batch cached")
RECIPE = """
data: {img_size: 64, threads: 2, test_fraction: 0.1}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 64}
"""


class Laps:
    """Wall and processor seconds of named phases of this process, its threads included."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    def lap(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work()` gives."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[name] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return result

    def report(self) -> dict[str, Any]:
        """The figures of this process."""
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))  # ru_maxrss begins with the parent's peak
        return {"seconds": self.seconds, "peak_rss_mib": int(peak.split()[1]) / 1024}


def run_index(root: Path) -> dict[str, Any]:
    """Lists and screens a folder that has no cache, reads the cache, splits, orders an epoch."""
    from fastaug.data.index import load_index
    from fastaug.data.sampler import Order
    from fastaug.data.splits import make_splits

    laps = Laps()
    laps.lap("index uncached", lambda: load_index(root))
    index = laps.lap("index cached", lambda: load_index(root))
    splits = laps.lap("splits", lambda: make_splits(index, seed=0, test=0.1, meta=0.1))
    order = Order(ids=splits.train, seed=0, batch_size=64)
    laps.lap("epoch order", lambda: order.epoch_ids(0))
    laps.lap("epoch requests", lambda: sum(len(r.ids) for r in order.requests(0, order.steps_per_epoch)))
    return laps.report()


def run_first_batch(root: Path) -> dict[str, Any]:
    """From a recipe to the first batch with a cached index: everything that a run builds before it trains."""
    laps = Laps()
    start = laps.lap("imports", lambda: starter(root))
    laps.lap("first batch cached", start)
    return laps.report()


def starter(root: Path) -> Callable[[], Any]:
    """A function that builds a run and takes its first batch; what it needs is imported now."""
    import torch

    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.recipe.reading import read_recipe
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    torch.set_num_threads(2)

    def start() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "recipe.yaml").write_text(RECIPE)
            recipe = read_recipe(Path(folder) / "recipe.yaml", [f"data.root={root}"])
        trainer = assemble(recipe, build_accelerator(recipe), RunFolder(""), Console(False))
        return next(trainer.loader.batches(trainer.order.requests(0, trainer.last_step)))

    return start


PARTS = {"index": run_index, "first-batch": run_first_batch}


def measured(part: str, root: Path, cache: Path) -> dict[str, Any]:
    """The figures of one part, from a process of its own; CalledProcessError when it fails."""
    command = child.command("benchmarks.growth", "--part", part, str(root))
    environment = child.environment(FASTAUG_CACHE=str(cache), OMP_NUM_THREADS="2")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(work: Path, sizes: list[int], repetitions: int) -> dict[int, list[dict[str, Any]]]:
    """Every repetition of every size; the sizes take turns, each time with an empty cache."""
    roots = {n: make_photo_folder(work / f"files{n}", n, min(LARGEST_CLASSES, n // 10)) for n in sizes}
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in sizes}
    for repetition in range(repetitions):
        for n, root in roots.items():
            cache = work / f"cache{n}-{repetition}"
            one, two = (measured(part, root, cache) for part in PARTS)
            peaks = {"peak_rss_mib": {"index": one["peak_rss_mib"], "first batch": two["peak_rss_mib"]}}
            found[n].append({"seconds": one["seconds"] | two["seconds"], **peaks})
    return found


def median(runs: list[dict[str, Any]], name: str, clock: str) -> float:
    """Seconds of one phase."""
    return statistics.median(run["seconds"][name][clock] for run in runs)


def summary(found: dict[int, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Gates and figures. `<phase>_exponent`: the largest between neighbouring sizes."""
    sizes = sorted(found)
    figures: dict[str, float] = {}
    for name in SCALED:
        cpu = [median(found[n], name, "cpu") for n in sizes]
        steps = zip(zip(sizes, cpu, strict=True), zip(sizes[1:], cpu[1:], strict=True), strict=False)
        key = name.replace(" ", "_")
        figures[f"{key}_exponent"] = max(math.log(c2 / c1) / math.log(n2 / n1) for (n1, c1), (n2, c2) in steps)
        figures |= {f"{key}_{n}_seconds": median(found[n], name, "wall") for n in sizes}
    figures["imports_seconds"] = median(found[sizes[-1]], "imports", "wall")
    exponents = {name: value for name, value in figures.items() if name.endswith("_exponent")}
    gates = {f"{name} <= {EXPONENT}": value <= EXPONENT for name, value in exponents.items()}
    gates[f"first batch < {FIRST_BATCH} s"] = figures[f"first_batch_cached_{sizes[-1]}_seconds"] < FIRST_BATCH
    return {"gates": gates, "figures": figures}


def show(found: dict[int, list[dict[str, Any]]], result: dict[str, dict[str, Any]]) -> None:
    """The table and the gates."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds, median: wall (processor)")
    for title in ("phase", *(f"{n:,} files" for n in sorted(found)), "exponent"):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for name in (*SCALED, "imports"):
        cells = [f"{median(found[n], name, 'wall'):.3f} ({median(found[n], name, 'cpu'):.3f})" for n in sorted(found)]
        exponent = result["figures"].get(f"{name.replace(' ', '_')}_exponent")
        table.add_row(name, *cells, "" if exponent is None else f"{exponent:.2f}")
    console = Console(width=110, highlight=False)
    console.print(table)
    for name, passed in result["gates"].items():
        console.print(f"{'ok' if passed else 'MISSED'}: {name}")


def main() -> int:
    """0 when every gate holds, 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=list(SIZES), metavar="N", help="sizes, at least two")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where the folders are made (default: temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--part", nargs=2, metavar=("PART", "ROOT"), help="one measurement, run by the tool itself")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part[0]](Path(args.part[1]))))
        return 0
    if len(set(args.files)) < 2 or min(args.files) < 100 or args.repetitions < 1:
        parser.error("--files needs two different sizes of at least 100, --repetitions at least 1")
    from fastaug.provenance import commit, versions

    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measure(Path(folder), sorted(set(args.files)), args.repetitions)
    result = summary(found)
    show(found, result)
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "versions": versions(), "commit": commit()}
        args.json.write_text(json.dumps({**about, "repetitions": found, **result}, indent=1) + "\n")
    return 0 if all(result["gates"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

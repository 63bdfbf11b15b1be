"""Growth with the number of files: index, splits, order and first batch of 5,000, 50,000 and 500,000 listed images.

Each time may grow no faster than the number of files: between two sizes the exponent of n is at most 1.15, in
processor seconds, medians of all repetitions. The first batch of the largest folder comes in less than 5 s with a
cached index, from the recipe to the batch, model and evaluation included, importing libraries not. The images are
hard links to a few files, in memory after the first reading: what a slow disk adds is not in these figures.

With --tables instead: learned tables of 5,000 and of ImageNet's 1,281,167 images of 1,000 classes, weights and soft
labels under RMSprop. Processor time of training steps that move them (a ResNet-18 on 64 x 64, 64 images; steps take
turns, ids are spread over the table), within 2 % of each other; bytes an image; and what a checkpoint writes of them.
Of policies by image (sample_policy: each), which other engines move: bytes and checkpoints.
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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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

    import fastaug.training.build  # noqa: F401  # and with it all that `assembled` imports

    torch.set_num_threads(2)

    def start() -> Any:
        trainer = assembled(RECIPE, root)
        return next(trainer.loader.batches(trainer.order.requests(0, trainer.last_step)))

    return start


def assembled(text: str, root: Path) -> Any:
    """The trainer of a recipe on the folder `root`."""
    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.recipe.reading import read_recipe
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.yaml").write_text(text)
        recipe = read_recipe(Path(folder) / "recipe.yaml", [f"data.root={root}"])
    return assemble(recipe, build_accelerator(recipe), RunFolder(""), Console(False))


TABLE_SIZES = (5_000, 1_281_167)
SLOWER, START = 1.02, 10.0  # at most: a step's time over the other's; seconds
WEIGHT_BYTES, LABEL_BYTES, POLICY_BYTES = 16, 256, 128  # at most, an image
TABLE_RECIPE = """
data: {img_size: 64, threads: 1, test_fraction: 0.25, meta_fraction: 0.25}
model: {name: resnet18}
optim: {opt: sgd, lr: 0.01}
train: {epochs: 1000, batch_size: 64}
meta: {learn: [weights, labels], every: 1, fraction: 1, engine: fused, batch_size: 64, table_optimizer: rmsprop}
"""
POLICIES = TABLE_RECIPE.replace("weights, labels", "sample_policy").replace("fused", "forward")


def run_tables(root: Path, sizes: Sequence[int], steps: int) -> dict[str, Any]:
    """Everything about learned tables of `sizes` images, two of them, the larger one last."""
    import torch

    from fastaug.meta.learned_part import Setting
    from fastaug.meta.parameters import build_parts
    from fastaug.training.loop import train_step

    torch.set_num_threads(1)
    trainer = assembled(TABLE_RECIPE, root)
    classes, device = len(trainer.parts.classes), trainer.accelerator.device
    laps, learned = Laps(), {}

    def built(trainer: Any, size: int) -> Any:
        labels = torch.arange(size) % classes
        return build_parts(Setting(trainer.recipe, size, classes, trainer.optimizer, device, labels=labels))

    for size in sizes:
        learned[size] = laps.lap(f"start {size}", partial(built, trainer, size))
    trainer.progress.step, images = 1, len(trainer.parts.index.labels)
    batches = trainer.loader.batches(trainer.order.requests(1, trainer.last_step))
    took: dict[int, list[float]] = {size: [] for size in sizes}
    for step in range(2 * steps + 6):
        size = sizes[step % 2]
        trainer.meta.learned = trainer.augment.learned = learned[size]
        batch = next(batches)
        spread = batch._replace(ids=batch.ids * (size // images) if size > images else batch.ids % size)
        begun = time.process_time()
        train_step(trainer, iter([spread]))
        if step >= 6:
            took[size].append(time.process_time() - begun)
    policies = built(assembled(POLICIES, root), sizes[-1])
    sizes_of_rows = table_bytes(learned[sizes[-1]]) | table_bytes(policies)
    saves = {"tables": run_saves(learned[sizes[-1]]), "policies": run_saves(policies)}
    return {"steps": took, "bytes": sizes_of_rows, **laps.report(), "saves": saves}


def table_bytes(learned: Any) -> dict[str, float]:
    """Bytes an image in memory of each table, its optimizer included."""
    return {
        name: sum(b.numel() * b.element_size() for b in table.buffers() if b.ndim and len(b) == len(table.changed))
        / len(table.changed)
        for name, table in learned.tables().items()
    }


def run_saves(learned: Any) -> dict[str, dict[str, float]]:
    """Seconds and megabytes that checkpoints write of the tables, by the share of rows changed since the last one."""
    import torch

    from fastaug.training import checkpoint
    from fastaug.training.table_files import Table

    found, tables = {}, {name: Table(*parts) for name, parts in learned.stored_tables().items()}
    rows = {name: value for table in tables.values() for name, value in table.rows.items()}
    with tempfile.TemporaryDirectory() as folder:
        for step, share in enumerate((1.0, 0.0, 0.01, 0.1, 1.0, None)):
            for table in tables.values():
                table.changed[torch.rand(len(table.changed)) < (share or 0)] = True
            state = {"meta": {"learned": rows if share is None else {}}}
            begun = time.perf_counter()
            path = checkpoint.save(Path(folder), step, {"model": {}}, state, {} if share is None else tables)
            seconds = time.perf_counter() - begun
            written = sum(file.stat().st_size for file in path.iterdir() if file.stat().st_nlink == 1)
            name = "in state.pt" if share is None else f"{share:.0%} changed" if step else "first"
            found[name] = {"seconds": seconds, "megabytes": written / 1e6}
    return found


def summary_of_tables(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Gates and figures of the tables."""
    small, large = (statistics.median(took) for took in found["steps"].values())
    figures = {"step_small_seconds": small, "step_large_seconds": large, "step_ratio": large / small}
    figures |= {f"{name}_bytes": value for name, value in found["bytes"].items()}
    figures["start_seconds"] = found["seconds"][f"start {max(found['steps'])}"]["wall"]
    for kind, saves in found["saves"].items():
        for name, save in saves.items():
            figures |= {f"save_{kind}_{name.replace(' ', '_')}_{unit}": value for unit, value in save.items()}
    figures["peak_rss_mib"] = found["peak_rss_mib"]
    gates = {
        f"step ratio <= {SLOWER}": figures["step_ratio"] <= SLOWER,
        f"weights <= {WEIGHT_BYTES} bytes": figures["weights_bytes"] <= WEIGHT_BYTES,
        f"labels <= {LABEL_BYTES} bytes": figures["labels_bytes"] <= LABEL_BYTES,
        f"sample_policy <= {POLICY_BYTES} bytes": figures["sample_policy_bytes"] <= POLICY_BYTES,
        f"start < {START} s": figures["start_seconds"] < START,
    }
    return {"gates": gates, "figures": figures}


PARTS = {"index": run_index, "first-batch": run_first_batch}


def measured(part: str, root: Path, cache: Path, module: str = "benchmarks.growth") -> dict[str, Any]:
    """The figures of one part of a module, from a process of its own; CalledProcessError when it fails."""
    command = child.command(module, "--part", part, str(root))
    environment = child.environment(FASTAUG_CACHE=str(cache), OMP_NUM_THREADS="2")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_part(
    parser: argparse.ArgumentParser, parts: Mapping[str, Callable[[Path], dict[str, Any]]], part: str, root: str
) -> int:
    """Prints the figures of one of the `parts` of a module, for `measured`; ends as `parser` does when it is none."""
    if part not in parts:
        parser.error(f"--part {part}: must be one of {', '.join(parts)}")
    print(json.dumps(parts[part](Path(root))))
    return 0


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
    """Gates and figures."""
    sizes = sorted(found)
    figures = figures_of(found, SCALED)
    figures["imports_seconds"] = median(found[sizes[-1]], "imports", "wall")
    exponents = {name: value for name, value in figures.items() if name.endswith("_exponent")}
    gates = {f"{name} <= {EXPONENT}": value <= EXPONENT for name, value in exponents.items()}
    gates[f"first batch < {FIRST_BATCH} s"] = figures[f"first_batch_cached_{sizes[-1]}_seconds"] < FIRST_BATCH
    return {"gates": gates, "figures": figures}


def figures_of(found: dict[int, list[dict[str, Any]]], names: Sequence[str]) -> dict[str, float]:
    """Seconds of the phases `names` at every size, and `<phase>_exponent`: the largest between neighbouring sizes."""
    sizes = sorted(found)
    figures: dict[str, float] = {}
    for name in names:
        cpu = [median(found[n], name, "cpu") for n in sizes]
        steps = zip(zip(sizes, cpu, strict=True), zip(sizes[1:], cpu[1:], strict=True), strict=False)
        key = name.replace(" ", "_")
        figures[f"{key}_exponent"] = max(math.log(c2 / c1) / math.log(n2 / n1) for (n1, c1), (n2, c2) in steps)
        figures |= {f"{key}_{n}_seconds": median(found[n], name, "wall") for n in sizes}
    return figures


def show(found: dict[int, list[dict[str, Any]]], result: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
    """The table of the phases `names`, and the gates."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="seconds, median: wall (processor)")
    for title in ("phase", *(f"{n:,} files" for n in sorted(found)), "exponent"):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for name in names:
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
    parser.add_argument("--files", type=int, nargs="+", metavar="N", help="sizes, at least two; two with --tables")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where the folders are made (default: temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--tables", action="store_true", help="learned tables instead")
    parser.add_argument("--steps", type=int, default=30, help="with --tables: steps of each size")
    parser.add_argument("--part", nargs=2, metavar=("PART", "ROOT"), help="one measurement, run by the tool itself")
    args = parser.parse_args()
    if args.part:
        return run_part(parser, PARTS, *args.part)
    sizes = sorted(set(args.files or (TABLE_SIZES if args.tables else SIZES)))
    if len(sizes) < 2 or sizes[0] < 100 or args.repetitions < 1:
        parser.error("--files needs two different sizes of at least 100, --repetitions at least 1")
    if args.tables and (len(sizes) > 2 or args.steps < 1):
        parser.error("--tables compares two sizes of --files, and needs --steps of at least 1")
    from fastaug.provenance import commit, versions

    found: Any
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        if args.tables:
            root = make_photo_folder(Path(folder) / "files", 4 * LARGEST_CLASSES, LARGEST_CLASSES)
            found = run_tables(root, sizes, args.steps)
        else:
            found = measure(Path(folder), sizes, args.repetitions)
    result = summary_of_tables(found) if args.tables else summary(found)
    if args.tables:
        print(json.dumps(result, indent=1))
    else:
        show(found, result, (*SCALED, "imports"))
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "versions": versions(), "commit": commit()}
        args.json.write_text(json.dumps({**about, "repetitions": found, **result}, indent=1) + "\n")
    return 0 if all(result["gates"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

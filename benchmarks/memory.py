"""Memory of our loader and of torchvision's (ImageFolder, RandomResizedCrop, DataLoader) with as many workers.

Proportional set size of all processes of a loader together: its peak, no larger than torchvision's, and its course over
20 epochs, flat by the slope of Theil and Sen: the lower end of its 95 % interval, over all epochs, stays below 2 % of
the peak. The first epochs, in which caches fill, do not count for the slope. Both read the same folder.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import child
from benchmarks.photo_folder import make_photo_folder

BATCH, SIDE, CLASSES = 64, 224, 10
FILLING, FLAT = 3, 0.02  # epochs that do not count for the slope; share of the peak that a slope may add
MIB = 2**20


def our_batches(root: Path, workers: int, epochs: int) -> Iterator[None]:
    """Our loader; gives way after every epoch."""
    from accelerate import Accelerator

    from fastaug.data.sampler import Order
    from fastaug.recipe.schema import Recipe
    from fastaug.training.build_data import find_data, training_loader

    recipe, accelerator = Recipe(), Accelerator(cpu=True)
    recipe.data.root, recipe.data.threads, recipe.data.img_size = str(root), workers, SIDE
    recipe.data.test_fraction = 0.05
    parts = find_data(recipe, accelerator)
    order = Order(ids=parts.splits.train, seed=0, batch_size=BATCH)
    loader = training_loader(recipe, accelerator, parts, order)
    for step, batch in enumerate(loader.batches(order.requests(0, epochs * order.steps_per_epoch)), start=1):
        batch.images[:, 0].sum()
        if step % order.steps_per_epoch == 0:
            yield


def torchvision_batches(root: Path, workers: int, epochs: int) -> Iterator[None]:
    """torchvision's data set and transform in torch's DataLoader, whose workers live on between epochs."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    class Visible(ImageFolder):
        """Without folders with a leading dot, as our index."""

        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
            return names, {name: label for label, name in enumerate(names)}

    crop = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.ToImage()])
    loader: DataLoader[Any] = DataLoader(
        Visible(root, crop), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )
    for _ in range(epochs):
        for images, _labels in loader:
            images[:, :, 0].sum()
        yield


LOADERS = {"fastaug": our_batches, "torchvision": torchvision_batches}


def consume(name: str, root: Path, workers: int, epochs: int) -> None:
    """Prints a line after every epoch and waits for an answer, while its memory is read."""
    import torch

    torch.set_num_threads(1)
    for epoch, _ in enumerate(LOADERS[name](root, workers, epochs)):
        print(epoch, flush=True)
        sys.stdin.readline()


def tree_memory(process: psutil.Process) -> float:
    """Proportional set size of a process and all below it, MiB; one that has ended counts as nothing."""
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            total += member.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass
    return total / MIB


def measure(name: str, root: Path, workers: int, epochs: int, every: float = 0.2) -> dict[str, Any]:
    """MiB: the largest of samples `every` seconds, and the value after each epoch; RuntimeError when it fails."""
    words = ["--loader", name, "--root", str(root), "--workers", str(workers), "--epochs", str(epochs)]
    environment = child.environment(FASTAUG_CACHE=str(root.parent / "cache"), OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        child.command("benchmarks.memory", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    watched, done = psutil.Process(process.pid), threading.Event()
    sampled: list[float] = [0.0]
    after: list[float] = []

    def sample() -> None:
        while not done.wait(every):
            sampled.append(tree_memory(watched))

    sampler = threading.Thread(target=sample)
    sampler.start()
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in process.stdout:
        after.append(tree_memory(watched))
        process.stdin.write("\n")
        process.stdin.flush()
    done.set()
    sampler.join()
    if process.wait() or len(after) != epochs:
        raise RuntimeError(f"{name} ended with code {process.returncode} after {len(after)} of {epochs} epochs")
    return {"peak": max(sampled + after), "after_epochs": after}


def slope(after: list[float]) -> dict[str, float]:
    """MiB per epoch by Theil and Sen, with the ends of its 95 % interval."""
    from scipy.stats import theilslopes

    found = theilslopes(after[FILLING:])
    return {"slope": float(found.slope), "low": float(found.low_slope), "high": float(found.high_slope)}


def is_flat(after: list[float]) -> bool:
    """Whether memory does not grow, or by so little that a run does not feel it."""
    return slope(after)["low"] * len(after) <= FLAT * max(after)


def summary(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gates and figures."""
    figures = {f"{name}_peak_mib": run["peak"] for name, run in found.items()}
    for name, run in found.items():
        figures |= {f"{name}_{end}_mib_per_epoch": value for end, value in slope(run["after_epochs"]).items()}
    figures["peak_over_torchvision"] = found["fastaug"]["peak"] / found["torchvision"]["peak"]
    gates = {
        "peak_over_torchvision <= 1": figures["peak_over_torchvision"] <= 1,
        "flat": is_flat(found["fastaug"]["after_epochs"]),
    }
    return {"gates": gates, "figures": figures}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=512, help="in the folder (default 512)")
    parser.add_argument("--workers", type=int, default=2, help="our threads, torchvision's processes (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--loader", choices=LOADERS, help="only read --root with this one, as the tool itself does")
    parser.add_argument("--root", type=Path, help="with --loader")
    args = parser.parse_args()
    if args.epochs < FILLING + 3 or args.workers < 1 or args.images < 2 * BATCH:
        parser.error(f"at least {FILLING + 3} epochs, 1 worker and {2 * BATCH} images are needed")
    return args


def main() -> int:
    """0 when every gate holds, 1 when one is missed."""
    args = parse()
    if args.loader:
        consume(args.loader, args.root, args.workers, args.epochs)
        return 0
    from fastaug.provenance import commit, versions

    with tempfile.TemporaryDirectory() as folder:
        root = make_photo_folder(Path(folder) / "photos", args.images, CLASSES, distinct=args.images)
        found = {name: measure(name, root, args.workers, args.epochs) for name in LOADERS}
    result = summary(found)
    for name, run in found.items():
        s = slope(run["after_epochs"])
        interval = f"[{s['low']:+.3f}, {s['high']:+.3f}]"
        print(f"{name:12} peak {run['peak']:7.1f} MiB   {s['slope']:+.3f} MiB per epoch {interval}")
    print("\n".join(f"{'ok' if passed else 'MISSED'}: {name}" for name, passed in result["gates"].items()))
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "versions": versions(), "commit": commit()}
        settings = {"epochs": args.epochs, "images": args.images, "workers": args.workers}
        args.json.write_text(json.dumps({**about, **settings, "runs": found, **result}, indent=1) + "\n")
    return 0 if all(result["gates"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

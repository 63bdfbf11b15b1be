"""The report of suspicious labels of large runs: 100,000 and ImageNet's 1,281,167 images of 1,000 classes.

Statistics are made up, a 25th of the images is the test split, 1 % of the training labels are planted. Seconds and the
peak of memory of `fastaug label-report` in a process of its own, imports included, with the index in the cache; before
it, the seconds that `samples.npz` takes to write. The images are hard links to 256 files. No gate.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth import Laps, measured, run_part, show
from benchmarks.large_index import folder_of

SIZES = (100_000, 1_281_167)
CLASSES = 1000
PHASES = ("index from cache or made", "samples.npz written", "report")
RECIPE = "data: {{root: {root}, test_fraction: 0.04, img_size: 64}}\nrun: {{plant: 0.01, dir: {run}}}\n"


def run_write(run: Path) -> dict[str, Any]:
    """Writes the statistics of a run that has a recipe."""
    from fastaug.distributed import build_accelerator
    from fastaug.evaluation.sample_file import FILE, archive
    from fastaug.recipe.reading import UNTRAINED, read_recipe
    from fastaug.training.build_data import find_data

    recipe, laps = read_recipe(run / "recipe.yaml", [*UNTRAINED, "train.precision=no"]), Laps()
    parts = laps.lap(PHASES[0], lambda: find_data(recipe, build_accelerator(recipe)))
    train, held_out = statistics_of(parts)
    laps.lap(PHASES[1], lambda: (run / FILE).write_bytes(archive(parts, train, held_out)))
    return laps.report()


def statistics_of(parts: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Columns of all images, and those of the test split: planted labels look wrong, and 1 % of the others."""
    import numpy as np
    import torch

    size, draw = len(parts.index), np.random.default_rng(0)
    wrong = draw.random(size) < 0.01
    wrong[parts.planted.ids] = True
    given = np.where(wrong, draw.uniform(0.05, 0.15, size), draw.uniform(0.9, 0.95, size)).astype(np.float32)
    other = np.where(wrong, 0.8, 0.03).astype(np.float32)
    looks = (parts.index.labels + 1) % len(parts.classes)
    columns = {"probability": given, "other_probability": other, "other": looks, "margin": given - other}
    columns |= {"cross_entropy": -np.log(given), "forgotten": wrong * 1, "visits": np.full(size, 5)}
    ids = parts.splits.test
    held_out = {"test": {"id": ids, **{name: column[ids] for name, column in columns.items()}}}
    return {name: torch.from_numpy(column) for name, column in columns.items()}, held_out


def run_report(run: Path) -> dict[str, Any]:
    """The command."""
    laps = Laps()

    def report() -> None:
        from fastaug.commands.label_report import main as command

        if code := command([str(run)]):
            sys.exit(code)

    laps.lap(PHASES[2], report)
    return laps.report()


PARTS = {"write": run_write, "report": run_report}


def measure(work: Path, sizes: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Every size once."""
    found = {}
    for n in sizes:
        root = folder_of(work, n, CLASSES)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            run = Path(folder) / "run"
            run.mkdir()
            (run / "recipe.yaml").write_text(RECIPE.format(root=root, run=run))
            one = partial(measured, root=run, cache=Path(folder) / "cache", module="benchmarks.label_report")
            parts = {name: one(name) for name in PARTS}
            megabytes = {file.name: file.stat().st_size / 1e6 for file in run.iterdir()}
        seconds = parts["write"]["seconds"] | parts["report"]["seconds"]
        found[n] = [{"seconds": seconds, "peak_rss_mib": parts["report"]["peak_rss_mib"], "megabytes": megabytes}]
    return found


def main() -> int:
    """0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", metavar="N", default=SIZES, help="numbers of images")
    parser.add_argument("--folders", type=Path, metavar="FOLDER", help="keeps the folders of images there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--part", nargs=2, metavar=("PART", "RUN"), help="one measurement, run by the tool itself")
    args = parser.parse_args()
    if args.part:
        return run_part(parser, PARTS, *args.part)
    from fastaug.provenance import commit, versions

    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.folders or Path(folder), sorted(set(args.files)))
    show(found, {"gates": {}, "figures": {}}, PHASES)
    for n, (run,) in found.items():
        sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in sorted(run["megabytes"].items()))
        print(f"{n:,} images: peak of the report {run['peak_rss_mib']:.0f} MiB; {sizes}")
    if args.json:
        about = {"machine": platform.platform(), "cores": os.cpu_count(), "versions": versions(), "commit": commit()}
        args.json.write_text(json.dumps({**about, "repetitions": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

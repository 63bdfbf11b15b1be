"""Puts runs onto one page: results over seeds, curves, calibration, mistakes, policy, labels, speed.

    fastaug report runs/plain-0 runs/plain-1 runs/soft-0 runs/soft-1
    fastaug report runs/plain-0

One HTML file that works from the disk without a network. Runs of one recipe that differ in their seed alone are one
row; other recipes are compared with the first one's. Runs may be unfinished or damaged, and their data gone: what is
missing is said in its place. docs/reports.md explains the figures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastaug.commands._argument_types import output_file
from fastaug.errors import FastaugError
from fastaug.recipe.reading import UNTRAINED, as_override, read_untrained

if TYPE_CHECKING:
    from fastaug.recipe.schema import Recipe
    from fastaug.reports.run_details import Part, RunData
    from fastaug.reports.run_files import RunFiles
    from fastaug.reports.run_groups import Group

TITLED = 3  # recipes that the title names
QUIET = [*UNTRAINED, "model.compile=false", "distill={}", "train.precision=no", "data.prefetch=1"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; they are only read")
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE.html",
        help="the page (default RUN/report.html, report.html here for several)",
    )
    parser.add_argument("--images", type=int, default=4, metavar="N", help="rows of a grid of a batch (default 4)")
    arguments = parser.parse_args(argv)
    if arguments.images < 0:
        parser.error(f"--images must be at least 0, found {arguments.images}")
    arguments.out = arguments.out or (arguments.runs[0] if len(arguments.runs) == 1 else Path()) / "report.html"
    return arguments


def report(arguments: argparse.Namespace) -> int:
    """Reads the runs and writes the page."""
    from fastaug.atomic_files import write_atomically
    from fastaug.reports.run_files import read_runs
    from fastaug.reports.run_groups import grouped
    from fastaug.reports.run_report import page

    runs = read_runs(arguments.runs)
    groups = grouped(runs)
    names = [group.name for group in groups]
    more = [f"and {len(names) - TITLED} more"] if len(names) > TITLED else []
    title = ("Run " if len(runs) == 1 else "Runs: ") + ", ".join([*names[:TITLED], *more])
    data = {run.name: data_of(run) for run in runs}
    grids = {group.name: grid(group, data[group.runs[0].name], arguments.images) for group in groups}
    write_atomically(arguments.out, page(title, groups, data, grids))
    print(arguments.out)
    return 0


def recipe_of(run: "RunFiles", *more: str) -> "Recipe":
    """The recipe of a run, without what it would load, send or compile."""
    return read_untrained(run.path / "recipe.yaml", [*QUIET, *more])


def data_of(run: "RunFiles") -> "RunData":
    """The images of a run, if they are still those that it was trained on."""
    from fastaug.distributed import build_accelerator
    from fastaug.reports.label_table import check_fits
    from fastaug.reports.run_details import RunData
    from fastaug.training.build_data import find_data

    if run.recipe is None:
        return RunData(None, f"recipe.yaml {run.problems['recipe.yaml']}")
    try:
        recipe = recipe_of(run)
        parts = find_data(recipe, build_accelerator(recipe))
        if run.samples is not None and parts.index is not None:
            check_fits(run.samples, parts, str(run.path))
    except (FastaugError, OSError) as error:
        return RunData(None, str(error))
    return RunData(parts)


def grid(group: "Group", data: "RunData", images: int) -> "Part":
    """Images of the first batch of a group's first run, under the policy that it has learned if it has."""
    from fastaug.commands.show_batch import first_batch
    from fastaug.reports.batch_grid import shown_batch
    from fastaug.reports.run_details import Part
    from fastaug.reports.run_report import grid_of

    if not images:
        return Part(why="Left out by --images 0.")
    if data.parts is None:
        return Part(why=f"The data cannot be read: {data.why}")
    run = group.runs[0]
    try:
        trainer, batch = first_batch(recipe_of(run, *learned(run)))
    except (FastaugError, OSError) as error:
        return Part(why=f"No batch can be made: {error}")
    augmented = trainer.augment.training(batch, 0)
    shown = shown_batch(trainer.augment, trainer.parts.classes, batch, augmented, 0, images)
    return Part(grid_of(shown))


def learned(run: "RunFiles") -> Sequence[str]:
    """Overrides under which the policy that a run has learned acts, as it ended."""
    return ["meta.learn=[]", as_override("meta.reuse", str(run.path))] if (run.path / "policy.json").is_file() else []


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 2 for a wrong --out, 5 where a run cannot be read or the page not written."""
    try:
        return report(parse(argv))
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"--out: the page cannot be written: {error}; choose another one", file=sys.stderr)
        return 5

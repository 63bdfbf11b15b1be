"""Lists the labels of a run's images that look wrong, and says how many are.

    fastaug train RECIPE.yaml run.plant=0.01
    fastaug label-report runs/RECIPE

Writes labels.html, one page with pictures, and labels.csv, all images with cleanlab's column names, into the run
folder. Ticked rows of the page are saved as a file for data.labels. How many labels are wrong is estimated where
run.plant has flipped some on purpose; they are not listed. --correct writes such a file of all training images whose
label is next to impossible, where they are too many to tick. --truth compares with a file of true labels, which is not
looked at otherwise. docs/label_doctor.md explains the figures.
"""

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.commands._argument_types import output_file
from fastaug.errors import FastaugError, RecipeError, StorageError
from fastaug.recipe.reading import UNTRAINED, read_stored, read_untrained

if TYPE_CHECKING:
    from fastaug.data.build import DataParts
    from fastaug.reports.label_table import LabelTable

QUIET = [*UNTRAINED, "train.precision=no"]
SURE, SURE_GUARDED = 0.3, 0.05  # scores below which nearly all labels are wrong, docs/label_doctor.md


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug label-report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run that has ended")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of its recipe")
    parser.add_argument("--pictures", type=int, default=200, metavar="N", help="rows of a split shown (default 200)")
    parser.add_argument("--duplicates", action="store_true", help="look for images that are nearly the same, too")
    parser.add_argument("--correct", type=output_file, metavar="FILE.tsv", help="write labels for data.labels here")
    below = (
        f"score below which --correct replaces a label (default {SURE}, with augment.trust and its like {SURE_GUARDED})"
    )
    parser.add_argument("--below", type=float, metavar="SCORE", help=below)
    parser.add_argument("--truth", type=Path, metavar="FILE.tsv", help="true labels, to judge the report itself")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures here")
    found = parser.parse_intermixed_args(argv)
    if found.pictures < 0:
        parser.error("--pictures must be at least 0")
    if found.below is not None and not 0 < found.below <= 0.5:
        parser.error("--below must be above 0, and 0.5 at most, where another class is as probable")
    if found.below is not None and found.correct is None:
        parser.error("--below says what --correct replaces; name its file too")
    return found


def report(arguments: argparse.Namespace) -> int:
    """Writes page and table, says what is in them."""
    run: Path = arguments.run
    if not (run / "recipe.yaml").exists():
        raise StorageError(f"{run}: is no run folder, it has no recipe.yaml; name the run.dir of a training")
    import numpy as np

    from fastaug.evaluation.sample_file import read_samples

    samples = read_samples(run)
    recipe = read_untrained(run / "recipe.yaml", [*QUIET, *arguments.overrides])
    trained = read_stored(run / "recipe.yaml")[0]  # what overrides change is where the data are, and the next run
    check_another_file(arguments.correct, [recipe.data.labels, trained.data.labels])
    from fastaug.atomic_files import write_atomically
    from fastaug.distributed import build_accelerator
    from fastaug.evaluation.label_truth import judged, read_truth
    from fastaug.reports.label_page import page, result
    from fastaug.reports.label_table import cautions, check_fits, csv_text, label_table
    from fastaug.training.build_data import find_data

    parts = find_data(recipe, build_accelerator(recipe))
    check_fits(samples, parts, str(run))
    truth = None if arguments.truth is None else read_truth(arguments.truth, parts)
    tables = [label_table(samples, split, trained, run) for split in ("train", *parts.held_out())]
    figures = result(tables)
    if truth is not None:
        listed = ~np.isnan(tables[0].scores)
        own = tables[0].samples
        wrong = (truth[own["id"]] != own["given"])[listed]
        figures["truth"] = judged(tables[0].scores[listed], wrong, tables[0].estimate)
    keys = ["run.plant=0", "run.plant_like=null"] if trained.run.plant else []
    ticked, folder = _new_names(run, recipe.data.labels)
    labels = arguments.correct or ticked
    settings = [*arguments.overrides, *keys, f"data.labels={labels}", f"run.dir={folder}"]
    command = shlex.join(["accelerate", "launch", "-m", "fastaug", "train", str(run / "recipe.yaml"), *settings])
    notes = cautions(tables, parts)
    pairs: list[Any] = []
    if trained.run.plant_like is not None:
        notes.append(f"Labels were planted as {trained.run.plant_like} confuses the classes.")
    if arguments.duplicates:
        said, pairs = _duplicates(parts)
        notes.append(said)
        figures["duplicates"] = [pair._asdict() for pair in pairs]
    text = page(f"Labels of {run.name}", tables, parts, arguments.pictures, command, ticked, notes, pairs)
    written = {"labels.html": text, "labels.csv": csv_text(tables, parts)}
    for name, data in written.items():
        write_atomically(run / name, data)
        print(run / name)
    if arguments.correct is not None:
        print(f"{_correct(arguments, tables[0], parts)}; train with it:\n  {command}")
    print(*notes, sep="\n", end="\n" if notes else "")
    for table in tables:
        print(line(table))
    if "truth" in figures:
        print("against the truth:", json.dumps(figures["truth"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def check_another_file(wanted: Path | None, trained: list[str | None]) -> None:
    """RecipeError where --correct names a file that the run was trained with: its labels would be gone."""
    if wanted is not None and wanted.resolve() in [Path(file).resolve() for file in trained if file is not None]:
        raise RecipeError([f"--correct: {wanted} holds the labels that the run was trained with; name another file"])


def _new_names(run: Path, trained: str | None) -> tuple[str, Path]:
    """A file for the ticked rows and a folder for the next run, not those of this or an earlier one."""
    for number in itertools.count(1):
        tail = "corrected" if number == 1 else f"corrected-{number}"
        file, folder = f"{tail}.tsv", Path(f"{run}-{tail}")
        if not folder.exists() and file != Path(trained or "").name:
            return file, folder
    raise AssertionError


def _duplicates(parts: "DataParts") -> tuple[str, list[Any]]:
    """What is said of images that are nearly the same, and the pairs; or why they cannot be looked for."""
    from fastaug.reports.near_duplicates import near_duplicates

    try:
        pairs = near_duplicates(parts)
    except ValueError as error:
        return str(error), []
    return f"{len(pairs)} pairs of images are nearly the same but labelled differently, or in two splits", pairs


def _correct(arguments: argparse.Namespace, table: "LabelTable", parts: "DataParts") -> str:
    """Writes the file of --correct and says what is in it."""
    from fastaug.atomic_files import write_atomically
    from fastaug.reports.label_table import corrected

    below = arguments.below or (SURE_GUARDED if table.guard else SURE)
    lines, count = corrected(table, parts, below)
    write_atomically(arguments.correct, lines)
    replaced = "1 label that scores" if count == 1 else f"{count} labels that score"
    said = f"{arguments.correct}: {replaced} below {below:g} replaced"
    if table.estimate is None or not count:
        return said
    return said + ", of which {1:.1%} to {2:.1%} were wrong".format(*table.estimate.precision(count))


def line(table: "LabelTable") -> str:
    """What is said of a split on the screen."""
    from fastaug.evaluation.label_estimate import UNEXPLAINED

    number, told = f"not estimated: {table.not_estimated()}", table.estimate
    if told is not None:
        number = "{:.0f} ({:.0f} to {:.0f}) of {}".format(*told.wrong, len(told.scores))
        if told.unexplained:
            number += f", but {told.unexplained} look more like another class. {UNEXPLAINED}"
    return f"{table.split}: {len(table)} images, {table.flagged} flagged; wrong labels: {number}"


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    try:
        return report(parse(argv))
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"the report cannot be written: {error}", file=sys.stderr)
        return 5

"""Evaluates a run or one of its checkpoints on a split of its data or of others.

    fastaug evaluate runs/quickstart --per-class

Under torchrun with as many processes as wanted, with the same figures.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.atomic_files import write_atomically
from fastaug.commands._argument_types import output_file
from fastaug.errors import StorageError, remedy_of, told

if TYPE_CHECKING:
    from fastaug.training.evaluate_run import Evaluated
    from fastaug.training.evaluation_checks import Checks

MOST_RUNS = 100_000  # of --latency
SEVERITIES = re.compile(r"\d{1,3}(\.\.\d{1,3}|(,\d{1,3})*,?)")  # one word of --severities


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", type=Path, metavar="RUN|CHECKPOINT", help="run folder, or one of its checkpoints/step-*"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the run's recipe")
    parser.add_argument("--split", default="test", choices=("train", "meta", "select", "test"))
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: as the recipe's headline")
    parser.add_argument(
        "--tta", type=int, metavar="A", help="also average over A copies under the run's policy (eval.tta)"
    )
    parser.add_argument("--per-class", action="store_true", help="print precision, recall and F1 of every class too")
    parser.add_argument(
        "--latency",
        type=_runs,
        nargs="?",
        const=50,
        default=0,
        metavar="RUNS",
        help="time the network on one image alone too, the median of so many passes (default 50)",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures here too")
    add_checks(parser)
    arguments = parser.parse_intermixed_args(argv)
    for word in () if arguments.severities is None else arguments.overrides:
        if SEVERITIES.fullmatch(word):
            parser.error(f"{word!r} stands alone; --severities is one word, such as 1..5 or 1,3")
    return arguments


def add_checks(parser: argparse.ArgumentParser) -> None:
    """The options of what is measured beside, docs/calibration_and_robustness.md."""
    group = parser.add_argument_group("calibration and robustness")
    group.add_argument(
        "--temperature",
        nargs="?",
        const="select",
        metavar="SPLIT|SHARE",
        help="fit a temperature on select (default), meta, or a share of the split, as 0.2, left out of its figures",
    )
    group.add_argument(
        "--occlusion",
        type=int,
        nargs="?",
        const=10,
        default=0,
        metavar="K",
        help="accuracy and confidence at K shares of the image in view (default 10)",
    )
    group.add_argument("--ood", metavar="ROOT", help="tell images of another set apart: any data.root, or a folder")
    group.add_argument(
        "--corruptions",
        nargs="?",
        const="all",
        metavar="NAMES",
        help="errors under common corruptions: all 15 (default), or some, as fog,snow",
    )
    group.add_argument("--severities", type=severities, metavar="1..5", help="of --corruptions; or 1,3 (default 1..5)")
    group.add_argument(
        "--label-map", type=Path, metavar="FILE", help="accuracy by several accepted labels, or over a part of classes"
    )
    group.add_argument("--charts", type=_page, metavar="FILE.html", help="draw what was measured as one page here")


def severities(text: str) -> tuple[int, ...]:
    """1..5, 3 or 1,3 as numbers; argparse tells other words."""
    if not SEVERITIES.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of severities; write it as 1..5, 3 or 1,3")
    first, dots, last = text.partition("..")
    if dots:
        return tuple(range(int(first), int(last) + 1))
    return tuple(int(word) for word in text.split(",") if word)


def wanted_checks(arguments: argparse.Namespace) -> "Checks":
    """What is to be measured beside."""
    from fastaug.evaluation.corruptions.published import SEVERITIES as ALL
    from fastaug.training.evaluation_checks import Checks

    return Checks(
        temperature=arguments.temperature,
        occlusion=arguments.occlusion,
        ood=arguments.ood,
        corruptions=() if arguments.corruptions is None else arguments.corruptions.split(","),
        severities=ALL if arguments.severities is None else arguments.severities,
        label_map=arguments.label_map,
    )


def _page(text: str) -> Path:
    """The file of --charts."""
    path = output_file(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{path} is to be one HTML page; name it {path.name}.html")
    return path


def _runs(text: str) -> int:
    """A number of passes; argparse tells a ValueError."""
    if not 1 <= int(text) <= MOST_RUNS:
        raise argparse.ArgumentTypeError(f"{text} is no number of passes from 1 to {MOST_RUNS}")
    return int(text)


def shown_figures(figures: dict[str, Any]) -> dict[str, str]:
    """The figures that are one number or word, those of test-time augmentation among them."""
    tta = {f"tta {name}": value for name, value in figures.get("tta", {}).items()}
    return {name: str(value) for name, value in (figures | tta).items() if not isinstance(value, (list, dict))}


def class_lines(found: "Evaluated") -> list[str]:
    """A line of figures for each class."""
    from fastaug.evaluation.class_table import table_lines

    if "classes" in found.figures:
        return table_lines(found.figures["classes"])
    several = zip(found.classes, found.figures["ap_by_class"], found.figures["f1_by_class"], strict=True)
    return [f"{name}: average precision {number(ap)}, F1 {number(f1)}" for name, ap, f1 in several]


def number(value: float | None) -> str:
    """A figure, or a dash where a class has none."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def evaluate_path(arguments: argparse.Namespace) -> None:
    """Prints the figures and writes them where asked."""
    from fastaug.console import Console
    from fastaug.data.class_names import shown
    from fastaug.evaluation.class_table import print_worst
    from fastaug.reports.check_report import check_lines
    from fastaug.training.evaluate_run import Wanted, evaluate_run

    words = {name: getattr(arguments, name) for name in ("path", "overrides", "split", "weights", "tta", "latency")}
    found = evaluate_run(Wanted(**words, checks=wanted_checks(arguments)))
    for name, reason in found.skipped.items():
        print(f"skipped: damaged image {shown(name)}: {reason}")
    console = Console(found.main)
    if arguments.per_class:
        for line in class_lines(found):
            console.print(line)
    print_worst(console, found.figures)
    console.summary(f"{found.checkpoint}, {arguments.split}", shown_figures(found.figures))
    for line in check_lines(found.figures):
        console.print(line)
    if found.main:
        write_outputs(arguments, found)


def write_outputs(arguments: argparse.Namespace, found: "Evaluated") -> None:
    """Writes --json and --charts; StorageError where they cannot be."""
    from fastaug.provenance import versions
    from fastaug.reports.check_report import page

    files: dict[Path, bytes] = {}
    if arguments.json:
        result = {
            "checkpoint": str(found.checkpoint),
            "split": arguments.split,
            "figures": found.figures,
            "versions": versions(),
        }
        files[arguments.json] = (json.dumps(result, indent=2) + "\n").encode()
    if arguments.charts:
        about = f"{found.checkpoint}, {arguments.split}"
        files[arguments.charts] = page(f"Checks of {arguments.path}", about, found.figures)
    try:
        for file, content in files.items():
            write_atomically(file, content)
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be written: {error}; {remedy_of(error)}") from error


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: evaluate_path(parse(argv)))

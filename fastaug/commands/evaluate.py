"""Evaluates a run or one of its checkpoints on a split of its data or of others.

Under torchrun with as many processes as wanted, with the same figures.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.errors import told

if TYPE_CHECKING:
    from fastaug.training.evaluate_run import Evaluated

MOST_RUNS = 100_000  # of --latency


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fastaug evaluate", description=__doc__)
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_intermixed_args(argv)


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
    from fastaug.provenance import versions
    from fastaug.training.evaluate_run import Wanted, evaluate_run

    words = {name: value for name, value in vars(arguments).items() if name not in ("json", "per_class")}
    found = evaluate_run(Wanted(**words))
    for name, reason in found.skipped.items():
        print(f"skipped: damaged image {shown(name)}: {reason}")
    console = Console(found.main)
    if arguments.per_class:
        for line in class_lines(found):
            console.print(line)
    print_worst(console, found.figures)
    console.summary(f"{found.checkpoint}, {arguments.split}", shown_figures(found.figures))
    if arguments.json and found.main:
        result = {
            "checkpoint": str(found.checkpoint),
            "split": arguments.split,
            "figures": found.figures,
            "versions": versions(),
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: evaluate_path(parse(argv)))

"""Evaluates a run or one of its checkpoints on a split of its data or of others.

Under torchrun with as many processes as wanted, with the same figures.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fastaug.errors import told


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_intermixed_args(argv)


def shown_figures(figures: dict[str, Any]) -> dict[str, str]:
    """The figures that are one number or word, those of test-time augmentation among them."""
    tta = {f"tta {name}": value for name, value in figures.get("tta", {}).items()}
    return {name: str(value) for name, value in (figures | tta).items() if not isinstance(value, (list, dict))}


def evaluate_path(arguments: argparse.Namespace) -> None:
    """Prints the figures and writes them where asked."""
    from fastaug.console import Console
    from fastaug.data.class_names import shown
    from fastaug.provenance import versions
    from fastaug.training.evaluate_run import Wanted, evaluate_run

    words = {name: value for name, value in vars(arguments).items() if name != "json"}
    found = evaluate_run(Wanted(**words))
    for name, reason in found.skipped.items():
        print(f"skipped: damaged image {shown(name)}: {reason}")
    Console(found.main).summary(f"{found.checkpoint}, {arguments.split}", shown_figures(found.figures))
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

"""Trains the arms of a study over several seeds: mean and standard deviation of each figure at the last epoch.

A study is a YAML file: `recipe`, `seeds` (how many) and `arms`, a name and a list of overrides each.
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastaug.recipe_reading import parse_yaml

REPO = Path(__file__).resolve().parent.parent
FIGURES = ("error", "ece", "nll")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file; docs/studies has examples")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every arm")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run folders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every repetition here")
    return parser.parse_intermixed_args()


def run_arm(arguments: argparse.Namespace, recipe: str, name: str, overrides: list[str], seed: int) -> dict[str, Any]:
    """The result of one run; a run that has ended is only evaluated again."""
    folder = arguments.runs / f"{arguments.study.stem}-{name}-{seed}"
    settings = [f"run.dir={folder}", f"run.seed={seed}", *overrides, *arguments.overrides]
    command = [sys.executable, str(REPO / "fastaug/train.py"), str(REPO / recipe), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "result.json").read_text())
    return {"error": 1 - result["top1"], "ece": result["ece"], "nll": result["nll"], "commit": result["commit"]}


def main() -> int:
    """Runs seed by seed, so that a study that is cut short still compares all arms."""
    arguments = parse()
    study = parse_yaml(arguments.study.read_text())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in study["arms"]}
    for seed in range(study["seeds"]):
        for name, overrides in study["arms"].items():
            runs[name].append(run_arm(arguments, study["recipe"], name, overrides, seed))
            print(f"seed {seed}  {name}: error {runs[name][-1]['error']:.4f}", flush=True)
    table = Table("arm", "runs", *(f"{figure}, mean (sd)" for figure in FIGURES))
    for name, results in runs.items():
        cells = []
        for figure in FIGURES:
            values = [result[figure] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.4f} ({spread:.4f})")
        table.add_row(name, str(len(results)), *cells)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"study": study, "runs": runs}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

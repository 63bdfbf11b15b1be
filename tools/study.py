"""Trains the arms of a study over several seeds: mean and standard deviation of each figure at the last epoch.

A study is a YAML file: `recipe`, `seeds` (how many) and `arms`, a name and a list of overrides each. Several processes
can share one, `--seeds 0 1` and `--seeds 2 3`; `--collect` then reads all their results.
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

from fastaug.recipe.strict_yaml import parse_yaml

REPO = Path(__file__).resolve().parent.parent
FIGURES = ("error", "ece", "nll", "select_error", "weight_auroc", "loss_auroc")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path, help="YAML file; docs/studies has examples")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every arm")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run folders")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these of the study's seeds")
    parser.add_argument("--collect", action="store_true", help="train nothing: the results of the runs that have ended")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every repetition here")
    return parser.parse_intermixed_args()


def run_arm(arguments: argparse.Namespace, recipe: str, name: str, overrides: list[str], seed: int) -> dict[str, Any]:
    """The figures of one run; a run that has ended is only evaluated again."""
    folder = arguments.runs / f"{arguments.study.stem}-{name}-{seed}"
    settings = [f"run.dir={folder}", f"run.seed={seed}", *overrides, *arguments.overrides]
    command = [sys.executable, str(REPO / "fastaug/train.py"), str(REPO / recipe), *settings]
    if not arguments.collect:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "result.json").read_text())
    figures = {"error": 1 - result["top1"], "ece": result["ece"], "nll": result["nll"]}
    if result["select"]:
        figures["select_error"] = 1 - result["select"]["top1"]
    return figures | result.get("samples", {}) | {"commit": result["commit"]}


def cell(results: list[dict[str, Any]], figure: str) -> str:
    """Mean and standard deviation, of arms that have the figure."""
    values = [result[figure] for result in results if figure in result]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ({spread:.4f})"


def main() -> int:
    """Runs seed by seed, so that a study that is cut short still compares all arms."""
    arguments = parse()
    study = parse_yaml(arguments.study.read_text())
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in study["arms"]}
    for seed in arguments.seeds or range(study["seeds"]):
        for name, overrides in study["arms"].items():
            runs[name].append(run_arm(arguments, study["recipe"], name, overrides, seed))
            print(f"seed {seed}  {name}: error {runs[name][-1]['error']:.4f}", flush=True)
    shown = [figure for figure in FIGURES if any(figure in result for results in runs.values() for result in results)]
    table = Table("arm", "runs", *(f"{figure}, mean (sd)" for figure in shown))
    for name, results in runs.items():
        table.add_row(name, str(len(results)), *(cell(results, figure) for figure in shown))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"study": study, "runs": runs}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

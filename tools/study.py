"""Trains the arms of a study over several seeds: mean and standard deviation of each figure at the last epoch.

A study is a YAML file: `recipe`, `seeds` (how many), `arms`, a name and a list of overrides each, and where needed
`overrides` of all arms, and `labels`, the share and kind of wrong labels that tools/make_noisy_labels.py draws. In
overrides {seed} is the seed, {labels} the file of wrong labels drawn for it, and {with_meta} the folder of lists that
add the meta split to the training split; with data.split_seed={seed} the splits are drawn anew too. Standard deviations
then hold all that was drawn. Differences to the first arm (--against) are between runs of one seed.

Several processes can share a study, `--seeds 0 1` and `--seeds 2 3`; `--collect` then reads all results there are, and
says which are missing.
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
WIDE = 1000  # columns of what is no terminal: there a table is as wide as it has to be

Runs = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> figures


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file; docs/studies has examples")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every arm")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run folders")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these of the study's seeds")
    parser.add_argument("--against", metavar="ARM", help="what the others' differences are to (default: the first arm)")
    parser.add_argument("--collect", action="store_true", help="train nothing: the results of the runs that have ended")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every repetition here")
    return parser.parse_intermixed_args()


# ---- runs ----


def settings_of(arguments: argparse.Namespace, study: dict[str, Any], arm: str, seed: int) -> list[str]:
    """The overrides of one run."""
    drawn = drawn_folder(arguments, seed)
    names = {"seed": str(seed), "labels": str(drawn / "labels.tsv"), "with_meta": str(drawn / "with_meta")}
    settings = [*study.get("overrides", []), *study["arms"][arm], *arguments.overrides]
    return [f"run.dir={run_folder(arguments, arm, seed)}", f"run.seed={seed}", *(_filled(s, names) for s in settings)]


def _filled(setting: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        setting = setting.replace(f"{{{name}}}", value)
    return setting


def run_folder(arguments: argparse.Namespace, arm: str, seed: int) -> Path:
    """The folder of one run."""
    return Path(arguments.runs / f"{arguments.study.stem}-{arm}-{seed}")


def drawn_folder(arguments: argparse.Namespace, seed: int) -> Path:
    """The folder of what is drawn for all runs of a seed."""
    return Path(arguments.runs / f"{arguments.study.stem}-drawn-{seed}")


def draw_labels(arguments: argparse.Namespace, study: dict[str, Any], seed: int) -> None:
    """Wrong labels of one seed and the lists of its fair control; drawn again, they are the same."""
    drawn = drawn_folder(arguments, seed)
    common = [_filled(s, {"seed": str(seed)}) for s in [*study.get("overrides", []), *arguments.overrides]]
    kept = [s for s in common if "{labels}" not in s and "{with_meta}" not in s]  # which are drawn here
    command = [sys.executable, str(REPO / "tools/make_noisy_labels.py"), str(REPO / study["recipe"]), *kept]
    command += [word for name, value in study["labels"].items() for word in (f"--{name}", str(value))]
    command += ["--seed", str(seed), "--out", str(drawn / "labels.tsv"), "--with-meta", str(drawn / "with_meta")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(arguments: argparse.Namespace, study: dict[str, Any], arm: str, seed: int) -> None:
    """One run; one that has ended is only evaluated again."""
    settings = settings_of(arguments, study, arm, seed)
    command = [sys.executable, str(REPO / "fastaug/train.py"), str(REPO / study["recipe"]), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def figures_of(folder: Path) -> dict[str, Any] | None:
    """The figures of a run that has ended, else None."""
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    figures = {"error": 1 - result["top1"], "ece": result["ece"], "nll": result["nll"]}
    if result["select"]:
        figures["select_error"] = 1 - result["select"]["top1"]
    return figures | result.get("samples", {}) | {"commit": result["commit"]}


def collect(arguments: argparse.Namespace, study: dict[str, Any], seeds: list[int]) -> Runs:
    """Trains what is to be trained, seed by seed, so that a study that is cut short still compares all arms."""
    runs: Runs = {arm: {} for arm in study["arms"]}
    for seed in seeds:
        if "labels" in study and not arguments.collect:
            draw_labels(arguments, study, seed)
        for arm in runs:
            if not arguments.collect:
                train(arguments, study, arm, seed)
            folder = run_folder(arguments, arm, seed)
            if (figures := figures_of(folder)) is None:
                print(f"seed {seed}  {arm}: missing, {folder} has no result.json", flush=True)
                continue
            runs[arm][seed] = figures
            print(f"seed {seed}  {arm}: error {figures['error']:.4f}", flush=True)
    return runs


# ---- tables ----


def cell(values: list[float]) -> str:
    """Mean and standard deviation, empty without values."""
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ({spread:.4f})"


def differences(runs: Runs, arm: str, against: str, figure: str) -> list[float]:
    """How much larger a figure is in `arm` than in `against`, in each seed that both have."""
    pairs = [(runs[arm][seed], runs[against][seed]) for seed in runs[arm].keys() & runs[against].keys()]
    return [one[figure] - other[figure] for one, other in pairs if figure in one and figure in other]


def tables(runs: Runs, against: str) -> list[Table]:
    """Figures of each arm, and their differences to the arm `against`."""
    known = [result for results in runs.values() for result in results.values()]
    shown = [figure for figure in FIGURES if any(figure in result for result in known)]
    means = Table("arm", "runs", *(f"{figure}, mean (sd)" for figure in shown))
    apart = Table(f"arm less {against}, by seed", "pairs", *(f"{figure}, mean (sd)" for figure in shown))
    for arm, results in runs.items():
        columns = ([result[figure] for result in results.values() if figure in result] for figure in shown)
        means.add_row(arm, str(len(results)), *map(cell, columns))
        if arm != against:
            pairs = len(results.keys() & runs[against].keys())
            apart.add_row(arm, str(pairs), *(cell(differences(runs, arm, against, figure)) for figure in shown))
    return [means, apart] if len(runs) > 1 else [means]


def main() -> int:
    """The exit code: 0."""
    arguments = parse()
    study = parse_yaml(arguments.study.read_text())
    against = arguments.against or next(iter(study["arms"]))
    if against not in study["arms"]:
        print(f"--against: {against!r} is no arm of {arguments.study}; choose one of {', '.join(study['arms'])}")
        return 2
    runs = collect(arguments, study, arguments.seeds or list(range(study["seeds"])))
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for table in tables(runs, against):
        console.print(table)
    if arguments.json:
        listed = {arm: [{"seed": seed, **result} for seed, result in results.items()] for arm, results in runs.items()}
        arguments.json.write_text(json.dumps({"study": study, "against": against, "runs": listed}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

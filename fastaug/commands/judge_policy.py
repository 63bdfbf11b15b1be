"""Judges a learned policy: is it worth using on this recipe, or does a fixed one do as well?

    fastaug judge-policy RECIPE --run runs/learned --seeds 0 1 2 3 4 --on select

Trains, on train + meta, at the recipe's budget and under the same seeds: nothing learned and no fixed policy (none),
RandAugment, TrivialAugment, the policy frozen as it was when learning began (start) and as it was learned (learned).
Differences are between runs of one seed, with a 95 % interval by Student's t. Everything else of the recipe is as it
says; augment.aa is each arm's own. The same command goes on after a kill. The price of learning is not in it: say it
beside the verdict. Choose by `--on select`; test is for the policy that was chosen.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from fastaug.commands._argument_types import one_or_more, output_file, zero_or_more
from fastaug.commands.study import WIDE, Study, collect, has_ended, write_once
from fastaug.errors import RecipeError, told
from fastaug.provenance import commit, versions
from fastaug.recipe.operation_files import as_operation
from fastaug.recipe.policy_file import FILE, Piece, PolicyFile, read_policy_file
from fastaug.recipe.reading import as_override, read_recipe
from fastaug.recipe.schema import Recipe
from fastaug.recipe.shipped import find_recipe
from fastaug.reports.run_tables import Runs, cell, differences

NOTHING = ["meta.learn=[]", "meta.reuse=null", "meta.frozen=true"]  # train + meta, and nothing learned acts
FIXED = {
    "none": [*NOTHING, "augment.aa=null"],
    "randaugment": [*NOTHING, "augment.aa=rand-m9-n2-mstd0.5"],
    "trivialaugment": [*NOTHING, "augment.aa=ta_wide"],
}
LEARNED, START = "learned", "start"
NO_SELECT = "--on: there is no select split; set data.select_fraction, or judge --on test"
FIGURES = {"test": "error", "select": "select_error"}


class Difference(NamedTuple):
    """A mean of paired differences and half the width of its 95 % interval, NaN of a single pair."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} ± {100 * self.half:.2f}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug judge-policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every arm")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--policy", type=Path, metavar="FILE", help="the policy.json to judge")
    which.add_argument("--run", type=Path, help="or the run folder that holds it")
    parser.add_argument(
        "--seeds", type=zero_or_more, nargs="+", default=[0, 1, 2, 3, 4], metavar="N", help="default 0 1 2 3 4"
    )
    parser.add_argument("--on", choices=FIGURES, help="the split that decides (default select where there is one)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run folders")
    parser.add_argument("--name", help="what their names begin with (default judge-RECIPE)")
    parser.add_argument("--jobs", type=one_or_more, default=1, metavar="N", help="runs at a time, of one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing: judge by the runs that have ended")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every repetition here")
    return parser.parse_intermixed_args(argv)


# ---- arms ----


def study_of(arguments: argparse.Namespace) -> Study:
    """What is trained; RecipeError where the policy or the recipe cannot be used."""
    given = arguments.policy or arguments.run
    file, name = read_policy_file(given), arguments.name or f"judge-{arguments.recipe.stem}"
    first = arguments.runs / f"{name}-{START}.json"
    # Those first that say of a file whether it can be used.
    arms = {LEARNED: ["meta.learn=[]", as_override("meta.reuse", str(given)), "augment.aa=null"]}
    if (start := start_of(file)) is None:
        print(
            f"{START}: left out, {file.path} does not say where its parts began: nothing learned in its run, or its "
            "slots were changed since"
        )
    else:
        arms[START] = ["meta.learn=[]", as_override("meta.reuse", str(first)), "augment.aa=null"]
    arms |= FIXED
    study = Study(
        name=name,
        recipe=find_recipe(arguments.recipe).resolve(),
        arms=arms,
        seeds=arguments.seeds,
        overrides=[],
        last=arguments.overrides,
        runs=arguments.runs,
        jobs=arguments.jobs,
        collect=arguments.collect,
        figure=FIGURES[arguments.on or "select"],
    )
    for arm, overrides in arms.items():
        if arm != START:  # its file, not yet written, has the parts of the learned one
            read_recipe(study.recipe, [*overrides, *arguments.overrides])
    check_same(study, LEARNED, file.pieces)
    if start is not None:
        began = {name: piece["values"] for name, piece in start["parts"].items()}
        check_same(study, START, {name: piece._replace(values=began[name]) for name, piece in file.pieces.items()})
        arguments.runs.mkdir(parents=True, exist_ok=True)
        write_once(first, json.dumps(start))
    return study


def check_select(recipe: Recipe) -> None:
    """RecipeError without a select split: before anything is trained."""
    from fastaug.distributed import build_accelerator
    from fastaug.training.build_data import find_data

    if not len(find_data(recipe, build_accelerator(recipe)).splits.select):
        raise RecipeError([NO_SELECT])


def check_same(study: Study, arm: str, pieces: Mapping[str, Piece]) -> None:
    """RecipeError where runs of an earlier start had another policy: the path may be the same."""
    for seed in study.seeds:
        folder = study.folder(arm, seed)
        if (folder / FILE).exists():
            began = read_policy_file(folder).pieces
            same = began.keys() == pieces.keys() and all(is_same(pieces[name], began[name]) for name in pieces)
            if not same:
                raise RecipeError([f"{folder}: was trained with another policy; choose another --name or remove it"])


def is_same(given: Piece, written: Piece) -> bool:
    """Whether a part that a run wrote is the one it was given, which may leave settings to their defaults."""
    written_as = written.settings
    same = all(_in_full(key, value) == _in_full(key, written_as.get(key)) for key, value in given.settings.items())
    return same and given.values == written.values


def _in_full(key: str, value: Any) -> Any:
    try:
        return [as_operation(each) for each in value] if key == "operations" and isinstance(value, list) else value
    except ValueError:
        return value  # none that a run wrote


def start_of(file: PolicyFile) -> dict[str, Any] | None:
    """The policy file with the values that learning began with; None where it does not say them."""
    if not file.pieces or any(piece.start is None for piece in file.pieces.values()):
        return None
    whole: dict[str, Any] = json.loads(file.path.read_bytes())
    for piece in whole["parts"].values():
        piece["values"] = piece["start"]
    return whole | {"tables": []}


# ---- figures ----


def paired(values: list[float]) -> Difference:
    """Mean and 95 % interval of differences, by Student's t."""
    from scipy.stats import t

    if len(values) < 2:
        return Difference(values[0] if values else float("nan"), float("nan"))
    spread = statistics.stdev(values) / len(values) ** 0.5
    return Difference(statistics.mean(values), spread * float(t.ppf(0.975, len(values) - 1)))


def split_of(runs: Runs, wanted: str | None) -> str:
    """The split that decides: the one asked for, else select where there is one."""
    known = [result for results in runs.values() for result in results.values()]
    selects = bool(known) and all("select_error" in result for result in known)
    if wanted == "select" and not selects:
        raise RecipeError([NO_SELECT])
    return wanted or ("select" if selects else "test")


def gains(runs: Runs, figure: str) -> dict[str, Difference]:
    """How much lower the learned policy's error is than each other arm's, of the seeds that both have."""
    return {arm: paired(differences(runs, arm, LEARNED, figure)) for arm in runs if arm != LEARNED}


def best_fixed(runs: Runs, figure: str) -> str:
    """The fixed policy of lowest mean error."""
    means = {arm: statistics.mean(r[figure] for r in runs[arm].values()) for arm in FIXED if runs[arm]}
    return min(means, key=means.__getitem__)


def verdict(gained: dict[str, Difference], best: str, split: str, pairs: int) -> str:
    """What the figures allow to say, in a sentence or two."""
    name = {"none": "no policy", "randaugment": "rand-m9-n2-mstd0.5", "trivialaugment": "ta_wide"}[best]
    found = gained[best]
    where = f"{found} points of {split} error less with the learned policy, {pairs} seeds"
    if pairs < 2:
        said = f"no verdict from {pairs} seed: give more --seeds ({100 * found.mean:+.2f} points against {name})"
    elif found.mean > found.half:
        said = f"use the learned policy: against {name}, {where}"
    elif found.mean < -found.half:
        said = f"keep {name}: the learned policy is worse, {where}"
    else:
        said = f"keep {name}: no difference is shown, {where}"
    if START in gained and pairs > 1:
        start = gained[START]
        learns = "is worth" if start.mean > start.half else "costs" if start.mean < -start.half else "shows no effect:"
        said += f". Learning {learns} {start} points against the policy that it began with"
    return said + "."


def table(runs: Runs, gained: dict[str, Difference], figure: str, split: str) -> Table:
    """A row for each arm."""
    found = Table("arm", "runs", f"{split} error, mean (sd)", "learned less error by, points ± 95 %")
    for arm, results in runs.items():
        less = str(gained[arm]) if arm in gained else ""
        found.add_row(arm, str(len(results)), cell([result[figure] for result in results.values()]), less)
    return found


def report(study: Study, runs: Runs, gained: dict[str, Difference], best: str, said: str) -> dict[str, Any]:
    """All of --json."""
    listed = {arm: [{"seed": seed, **result} for seed, result in results.items()] for arm, results in runs.items()}
    figures = {f"{arm}_gain": value.mean for arm, value in gained.items()}
    figures |= {f"{arm}_gain_half": value.half for arm, value in gained.items()}
    least = gained[best]
    return {
        "machine": f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions(),
        "commit": commit(),
        "recipe": study.recipe.name,
        "arms": study.arms,
        "overrides": [*study.last],
        "runs": listed,
        "best_fixed": best,
        "verdict": said,
        "gates": {
            "all_runs": all(len(results) == len(study.seeds) for results in runs.values()),
            "better_than_fixed": least.mean > least.half,
            "better_than_start": START in gained and gained[START].mean > gained[START].half,
        },
        "figures": {name: value if value == value else None for name, value in figures.items()},
    }


def judge(arguments: argparse.Namespace) -> int:
    """Trains, tells and writes; the exit code."""
    study = study_of(arguments)
    if arguments.on == "select" and not (study.collect or has_ended(study, LEARNED, study.seeds[0])):
        check_select(read_recipe(study.recipe, [*study.arms[LEARNED], *study.last]))
    runs = collect(study)
    if not (runs[LEARNED] and any(runs[arm] for arm in FIXED)):
        print("nothing to judge: no run of the learned policy, or none of a fixed one, has ended")
        return 1
    split = split_of(runs, arguments.on)
    figure = FIGURES[split]
    gained, best = gains(runs, figure), best_fixed(runs, figure)
    said = verdict(gained, best, split, len(runs[best].keys() & runs[LEARNED].keys()))
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(runs, gained, figure, split))
    print(said)
    if arguments.json:
        arguments.json.write_text(json.dumps(report(study, runs, gained, best, said), indent=2) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 when a run failed, 2 for a policy or recipe that cannot be used, 75 when it was stopped."""
    return told(lambda: judge(parse(argv)))

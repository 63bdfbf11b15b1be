"""Trains the arms of a study over several seeds: mean and deviation of each figure at the end.

    fastaug study docs/studies/soft_mnist5k.yaml --json soft.json

A study is a YAML file: `recipe`, `seeds` (how many), `arms`, a name and a list of overrides each, and where needed
`overrides` of all arms, and `labels`, the arguments of `fastaug distort`, {imbalance: 100, noise: 0.1}. In place of
`labels`, `cells` may have several of them by name: every arm is trained in each cell. A `grid`, {meta.every: [1, 5],
optim.lr: [.1, .2]}, makes an arm of every combination, named by its values, beside or instead of `arms` (of each arm,
if there are some). In overrides {seed} is the seed, {labels} the file of wrong labels drawn for it, {splits} the folder
of lists of the distorted splits, {with_meta} that of lists that add the meta split to the training split, {clean} that
of lists that train on the meta split alone (without {labels}: data.labels=null); lists take the place of
data.*_fraction, which become 0 where they are. With data.split_seed={seed} the splits are drawn anew too.
Standard deviations then hold all that was drawn. Differences to the first arm (--against) are between runs of one seed,
with the p of a paired t-test, uncorrected for the number of arms. --layout FIGURE prints methods by cells, in Markdown.

The same command goes on after a kill: runs that have ended are not trained again. A run that fails is told, the others
are trained, and the exit code is 1. SIGTERM and Ctrl-C reach the runs, which save and stop; the exit code is 75. --jobs
N trains N runs at a time, of one thread each. Several processes can share a study, `--seeds 0 1` and `--seeds 2 3`;
`--collect` then reads all results there are, and says which are missing or of other settings.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from rich.console import Console
from ruamel.yaml.error import YAMLError

from fastaug.commands._argument_types import one_or_more, output_file, zero_or_more
from fastaug.commands._child_processes import ChildProcesses
from fastaug.errors import EXIT_DONE, RecipeError, Stopped, told
from fastaug.recipe import reading
from fastaug.recipe.reading import as_begun, read_recipe, read_stored
from fastaug.recipe.schema import RESUMABLE, Recipe
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.reports.run_tables import FIGURES, SHARES, Runs, compared, figures_of_result, layout, tables

PACKAGE = Path(__file__).resolve().parents[1]  # run by its files, so that it need not be installed
WIDE = 1000  # columns of what is no terminal: there a table is as wide as it has to be
LISTS = ("{splits}", "{with_meta}", "{clean}")  # in an override: lists in place of fractions
DRAWN = ("{labels}", *LISTS)
PLACES = ("data.root", "data.table", "data.class_map", "data.splits", "data.labels", "meta.reuse")  # of one machine
DISTORTION = ("subsample", "imbalance", "noise", "kind", "confusion", "human", "column", "overfit", "oversplit")
NO_FRACTIONS = [f"data.{name}_fraction=0" for name in ("meta", "select", "test")]


class Study(NamedTuple):
    """What is trained: `arms` of `recipe`, each under every seed, in folders of `runs` that begin with `name`."""

    name: str
    recipe: Path
    arms: dict[str, list[str]]
    seeds: list[int]
    overrides: list[str]  # of all arms; in their places {seed} and what is drawn
    runs: Path
    last: Sequence[str] = ()  # overrides of all arms too, behind theirs
    labels: dict[str, Any] | None = None  # arguments of the distortion
    jobs: int = 1
    collect: bool = False  # only read results
    figure: str = "error"  # told of each run as it ends, where it has it

    def folder(self, arm: str, seed: int) -> Path:
        """The folder of one run."""
        return self.runs / f"{self.name}-{arm}-{seed}"

    def drawn(self, seed: int) -> Path:
        """The folder of what is drawn for all runs of a seed."""
        return self.runs / f"{self.name}-drawn-{seed}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file; docs/studies has examples")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every arm")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run folders")
    parser.add_argument("--seeds", type=zero_or_more, nargs="+", metavar="N", help="instead of the study's: 0, 1, ...")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="only these of the study's cells")
    parser.add_argument("--layout", choices=SHARES, metavar="FIGURE", help=f"methods by cells: {', '.join(SHARES)}")
    parser.add_argument("--against", metavar="ARM", help="what the others' differences are to (default: the first arm)")
    parser.add_argument("--jobs", type=one_or_more, default=1, metavar="N", help="runs at a time, of one thread each")
    parser.add_argument("--collect", action="store_true", help="train nothing: the results of the runs that have ended")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every repetition here")
    return parser.parse_intermixed_args(argv)


def checked(values: Any) -> dict[str, Any]:
    """The values of a study file; ValueError says what of them is no study."""
    kinds: dict[str, tuple[type, str]] = {
        **{"recipe": (str, "the path of a recipe"), "seeds": (int, "how many")},
        **{"arms": (dict, "names with lists of overrides"), "grid": (dict, "keys with lists of values")},
        **{"overrides": (list, "a list of overrides"), "labels": (dict, "the arguments of `fastaug distort`")},
        "cells": (dict, "names with the arguments of `fastaug distort`"),
    }
    if not isinstance(values, dict):
        raise ValueError(f"must be a mapping with {', '.join(kinds)}")
    for name, (kind, means) in kinds.items():
        if name in values and not isinstance(values[name], kind):
            raise ValueError(f"{name}: must be {means}, found {values[name]!r:.100}")
    _check_arms(values)
    _check_distortions(values)
    if missing := {"recipe", "seeds"} - values.keys():
        raise ValueError(f"{min(missing)}: is missing")
    if not (values.get("arms") or values.get("grid")):
        raise ValueError("arms: there is none, and no grid")
    return values


def _check_arms(values: dict[str, Any]) -> None:
    for name in ("arms", "grid"):
        for key, found in values.get(name, {}).items():
            if not isinstance(key, str):
                raise ValueError(f"{name}: {key!r:.100}: must be a text; put it in quotes")
            if not isinstance(found, list):
                raise ValueError(f"{name}: {key}: must be a list, found {found!r:.100}")
    for name, found in {"overrides": values.get("overrides", []), **values.get("arms", {})}.items():
        if wrong := [override for override in found if not isinstance(override, str)]:
            raise ValueError(f"{name}: {wrong[0]!r:.100}: is no override; write it as key.path=value")


def _check_distortions(values: dict[str, Any]) -> None:
    if "labels" in values and "cells" in values:
        raise ValueError("cells: stands in place of labels; leave one of them out")
    for name, settings in {"labels": values.get("labels", {}), **values.get("cells", {})}.items():
        if not isinstance(settings, dict) or (unknown := settings.keys() - set(DISTORTION)):
            found = repr(settings) if not isinstance(settings, dict) else ", ".join(sorted(map(str, unknown)))
            raise ValueError(f"{name}: can have {', '.join(DISTORTION)}, as `fastaug distort`; found {found}")


def read_study(arguments: argparse.Namespace, values: dict[str, Any]) -> Study:
    """The study of a file's `values`, as the command line wants it."""
    return Study(
        name=arguments.study.stem,
        recipe=recipe_of(arguments.study, values["recipe"]),
        arms=arms_of(values.get("arms", {}), values.get("grid", {})),
        seeds=arguments.seeds or list(range(values["seeds"])),
        overrides=list(values.get("overrides", [])),
        last=arguments.overrides,
        runs=arguments.runs,
        labels=values.get("labels"),
        jobs=arguments.jobs,
        collect=arguments.collect,
    )


def recipe_of(study: Path, name: str) -> Path:
    """The recipe that a study names: a path from the study's folder or one around it, else a shipped one's name."""
    around = (folder / name for folder in study.resolve().parents)
    return next((path for path in around if path.is_file()), Path(name))


def cells_of(study: Study, cells: dict[str, dict[str, Any]], wanted: Sequence[str] | None) -> dict[str, Study]:
    """A study for each cell, of the same arms under another distortion; without cells the study itself, as ""."""
    if unknown := set(wanted or ()) - cells.keys():
        raise ValueError(f"--cells: {min(unknown)!r} is no cell; it can be {', '.join(cells) or 'left out'}")
    if not cells:
        return {"": study}
    kept = {name: labels for name, labels in cells.items() if wanted is None or name in wanted}
    return {name: study._replace(name=f"{study.name}-{name}", labels=labels) for name, labels in kept.items()}


def arms_of(arms: dict[str, list[str]], grid: dict[str, list[Any]]) -> dict[str, list[str]]:
    """The arms, each with every combination of the grid's values if there is a grid."""
    if not grid:
        return arms
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError(f"grid: must be a mapping of keys to lists of values, none of them empty, found {grid!r:.200}")
    found: dict[str, list[str]] = {}
    for (arm, overrides), values in itertools.product((arms or {"": []}).items(), itertools.product(*grid.values())):
        settings = [f"{key}={_written(value)}" for key, value in zip(grid, values, strict=True)]
        name = ",".join([*([arm] if arm else []), *settings])
        found[re.sub(r"[^\w.,=+-]+", "_", name)] = [*overrides, *settings]
    combinations = max(1, len(arms)) * len(list(itertools.product(*grid.values())))
    if len(found) < combinations:
        raise ValueError(f"grid: {combinations} combinations have {len(found)} names; give it values that differ more")
    return found


def _written(value: Any) -> str:
    """A value of a grid as an override has it."""
    return value if isinstance(value, str) else json.dumps(value)


# ---- runs ----


def settings_of(study: Study, arm: str, seed: int) -> list[str]:
    """The overrides of one run."""
    drawn = study.drawn(seed)
    names = {"seed": str(seed), "labels": str(drawn / "labels.tsv")}
    names |= {"splits": str(drawn / "splits"), "with_meta": str(drawn / "control")}
    names["clean"] = str(drawn / "clean")
    settings = [*study.overrides, *study.arms[arm], *study.last]
    if any(name in setting for setting in settings for name in LISTS):
        settings += NO_FRACTIONS
    return [f"run.dir={study.folder(arm, seed)}", f"run.seed={seed}", *(_filled(s, names) for s in settings)]


def _filled(setting: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        setting = setting.replace(f"{{{name}}}", value)
    return setting


def draw_labels(study: Study, seed: int, children: ChildProcesses) -> None:
    """The distortion of one seed, and the lists of its fair control; drawn again, it is the same."""
    assert study.labels is not None
    common = [_filled(s, {"seed": str(seed)}) for s in [*study.overrides, *study.last]]
    kept = [s for s in common if not any(name in s for name in DRAWN)]  # the others are drawn here
    command = [sys.executable, str(PACKAGE), "distort", str(study.recipe), *kept]
    for name, value in study.labels.items():
        command += ([f"--{name}"] if value else []) if isinstance(value, bool) else [f"--{name}", str(value)]
    command += ["--seed", str(seed), "--out", str(study.drawn(seed))]
    children.run(command)


def has_ended(study: Study, arm: str, seed: int) -> bool:
    """Whether the run of these very settings has ended with its result."""
    folder = study.folder(arm, seed)
    try:
        status = json.loads((folder / "status.json").read_text())
        if status["code"] != EXIT_DONE or not (folder / "result.json").exists():
            return False
        now = read_recipe(study.recipe, settings_of(study, arm, seed))
        ended = (folder / "status.json").stat().st_mtime
        files = [now.meta.reuse, now.meta.operations]
        if any(Path(file).exists() and Path(file).stat().st_mtime > ended for file in files if file is not None):
            return False  # the run itself says whether it still is what it was
        return not _differences(folder, now)
    except (OSError, ValueError, LookupError, TypeError, RecipeError):
        return False  # the run itself says what is wrong


def _differences(folder: Path, now: Recipe) -> list[str]:
    """The keys in which a run's recipe is another than `now`, those that may change in a run aside."""
    before, schema = read_stored(folder / "recipe.yaml")
    return sorted(reading.differences(before, as_begun(now, schema)).keys() - RESUMABLE)


def left_out(study: Study, arm: str, seed: int) -> str | None:
    """Why a finished run is none of the study; None where it is, or has left no recipe. Its folder may have moved."""
    folder = study.folder(arm, seed)
    if not (folder / "recipe.yaml").exists():
        return None
    try:
        apart = _differences(folder, read_recipe(study.recipe, settings_of(study, arm, seed)))
    except RecipeError as error:
        return f"its settings cannot be compared: {error.problems[0]}"
    other = [key for key in apart if key not in PLACES]
    return f"was trained with another {', '.join(other)}" if other else None


def train(study: Study, arm: str, seed: int, children: ChildProcesses) -> None:
    """One run, from its last checkpoint on; nothing to do for one that has ended."""
    if has_ended(study, arm, seed):
        return
    settings, environment = settings_of(study, arm, seed), dict(os.environ)
    if study.jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"
        settings.append("data.threads=1")
    command = [sys.executable, str(PACKAGE), "train", str(study.recipe), *settings]
    children.run(command, environment)


def figures_of(folder: Path) -> dict[str, Any] | None:
    """The figures of a run that has ended, else None: also where status.json tells of a later start that has not."""
    try:
        status = folder / "status.json"
        if status.exists() and json.loads(status.read_text()).get("code") != EXIT_DONE:
            return None
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        return None
    return figures_of_result(result)


def _ends_all(error: subprocess.CalledProcessError, go_on: bool) -> bool:
    """Whether a study ends with a run that failed: it was killed, or without `go_on` in any case."""
    return not go_on or error.returncode < 0


def _train_next(study: Study, run: tuple[str, int], go_on: bool, over: Event, children: ChildProcesses) -> None:
    """Trains a run, unless one before it ended the study; the run itself says so, before its thread takes the next."""
    if over.is_set():
        return
    try:
        train(study, *run, children)
    except (Stopped, OSError):  # OSError: it could not be started
        over.set()
        raise
    except subprocess.CalledProcessError as error:
        if _ends_all(error, go_on):
            over.set()
        raise


def trained(study: Study, go_on: bool, children: ChildProcesses | None) -> Iterator[tuple[str, int]]:
    """Arm and seed of each run, once it has ended: seed by seed, so that a study cut short still compares all arms.

    Without `children` nothing is trained. With `go_on` a run that fails is told and left out; one that was stopped or
    killed ends the study.
    """
    each = [(arm, seed) for seed in study.seeds for arm in study.arms]
    if children is None:
        yield from each
        return
    if study.labels is not None:
        for seed in study.seeds:
            draw_labels(study, seed, children)
    over = Event()
    with ThreadPoolExecutor(study.jobs) as pool:
        started = [(run, pool.submit(_train_next, study, run, go_on, over, children)) for run in each]
        try:
            for (arm, seed), training in started:
                try:
                    training.result()
                except subprocess.CalledProcessError as error:
                    if _ends_all(error, go_on):
                        raise
                    log = study.folder(arm, seed) / "errors.log"
                    more = f", see {log}" if log.exists() else ""
                    print(f"seed {seed}  {arm}: a run ended with code {error.returncode}{more}", file=sys.stderr)
                else:
                    yield arm, seed
        finally:
            pool.shutdown(cancel_futures=True)


def collect(study: Study, go_on: bool = False) -> Runs:
    """Trains what is to be trained and gives the figures of all runs; those that are missing are named.

    Stopped where a run was, or a signal came; CalledProcessError where a run fails, with `go_on` where one was killed.
    """
    runs: Runs = {arm: {} for arm in study.arms}
    with ChildProcesses() if not study.collect else nullcontext() as children:
        for arm, seed in trained(study, go_on, children):
            folder = study.folder(arm, seed)
            if (figures := figures_of(folder)) is None:
                print(f"seed {seed}  {arm}: missing, {folder} has no result.json of a run that has ended", flush=True)
            elif study.collect and (reason := left_out(study, arm, seed)):
                print(f"seed {seed}  {arm}: left out, {folder}: {reason}", flush=True)
            else:
                runs[arm][seed] = figures
                shown = next(figure for figure in (study.figure, *FIGURES) if figure in figures)
                print(f"seed {seed}  {arm}: {shown.replace('_', ' ')} {figures[shown]:.4f}", flush=True)
    return runs


def write_once(path: Path, text: str) -> None:
    """Writes a file that trainings depend on; RecipeError where an earlier start had another one of that name."""
    if path.exists() and path.read_text() != text:
        raise RecipeError(
            [f"{path}: is of another policy or other splits, as the runs beside it are; choose another --name, or "
             "remove them"]
        )  # fmt: skip
    if not path.exists():
        path.write_text(text)


# ---- tables ----


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 when a run failed, 2 for a study that cannot be, 75 when it was stopped."""
    arguments = parse(argv)
    try:
        values = checked(parse_yaml(arguments.study.read_text()))
        study = read_study(arguments, values)
        cells = cells_of(study, values.get("cells", {}), arguments.cells)
    except (OSError, ValueError, LookupError, YAMLError) as error:
        print(f"{arguments.study}: {error}", file=sys.stderr)
        return 2
    against = arguments.against or next(iter(study.arms))
    if against not in study.arms:
        text = f"--against: {against!r} is no arm of {arguments.study}; choose one of {', '.join(study.arms)}"
        print(text, file=sys.stderr)
        return 2
    return told(lambda: report(arguments, values, cells, against))


def report(arguments: argparse.Namespace, values: dict[str, Any], cells: dict[str, Study], against: str) -> int:
    """Trains, tells and writes; the exit code."""
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    found: dict[str, Runs] = {}
    complete = True
    for name, study in cells.items():
        if name:
            print(f"cell {name}", flush=True)
        found[name] = collect(study, go_on=True)
        complete &= study.collect or all(len(runs) == len(study.seeds) for runs in found[name].values())
        for table in tables(found[name], against):
            console.print(table)
    if arguments.layout:
        print(layout(found, arguments.layout))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(values, against, found), indent=2) + "\n")
    return 0 if complete else 1


def as_json(values: dict[str, Any], against: str, found: dict[str, Runs]) -> dict[str, Any]:
    """Every repetition, and the differences: of the study, or of each of its cells."""
    each: dict[str, dict[str, Any]] = {}
    for name, runs in found.items():
        listed = {arm: [{"seed": seed, **result} for seed, result in results.items()] for arm, results in runs.items()}
        each[name] = {"runs": listed, "differences": compared(runs, against)}
    return {"study": values, "against": against, **each.get("", {"cells": each})}

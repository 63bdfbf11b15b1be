#!/usr/bin/env python3
"""Attacks runs with odd files, kills, damaged run folders, bad recipes, changed files and long runs through faults.

`--short` takes about a minute on two cores, without changed files (tests/attacks has a sample) and long runs; `--full`
hours, and has not yet been run in full. Exit code 1 when anything was lost; it is named.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
os.environ["PYTHONPATH"] = str(ROOT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

PARTS = ("files", "kills", "folders", "recipes", "fuzz", "soak")
WHOLE = ("fuzz", "soak")  # that have no sample here


class Score(NamedTuple):
    """How often something was tried, and what went wrong."""

    what: str
    tried: int
    lost: list[str]


def files(short: bool) -> Score:
    """Passes of every loader over odd, damaged and changing files."""
    from attacks.files import attack, counted, trials

    lost, passes = [], list(trials(short))
    for trial in passes:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, asked which of the damaged files it opens
            lost += [f"{trial}: {problem}" for problem in attack(trial, Path(folder)).problems]
    return Score(f"passes over {counted()}", len(passes), lost)


def kills(short: bool) -> Score:
    """Kills in a tight loop of updates and saves, which wait for each other or do not; in full, of divided networks."""
    waiting, asynchronous, divided = (15, 5, 0) if short else (500, 200, 40)
    attacks = [["attacks.kills", str(waiting)], ["attacks.kills", str(asynchronous), "--async"]]
    attacks += [["attacks.sharded_kills", str(divided)]] if divided else []
    lost = []
    for module, *options in attacks:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", module, folder, *options]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        lost += [] if ended.returncode == 0 else [(ended.stdout + ended.stderr).strip()[-500:]]
    return Score("kills while training and saving", waiting + asynchronous + divided, lost)


def folders(short: bool) -> Score:
    """Starts in damaged run folders."""
    from attacks.run_folders import attack, kinds, make_whole

    chosen = kinds()[::16] if short else kinds()
    with tempfile.TemporaryDirectory() as made:
        whole = make_whole(Path(made))
        return Score("damaged run folders", len(chosen), _each(chosen, lambda kind, path: attack(kind, whole, path)))


def recipes(short: bool) -> Score:
    """Checks of bad recipes."""
    from attacks.bad_starts import attack
    from attacks.recipes import bad_recipes

    chosen = {recipe.name: recipe for recipe in (bad_recipes()[::32] if short else bad_recipes())}
    return Score("bad recipes", len(chosen), _each(chosen, lambda name, path: attack(chosen[name], path)))


def fuzz(_: bool) -> Score:
    """Changed files of every kind that a stranger may have written."""
    from attacks.fuzz import TARGETS, attack

    lost = [f"{name}: {problem}" for name in TARGETS if (problem := attack(name, 3000))]
    return Score("kinds of files, each changed 3,000 times", len(TARGETS), lost)


def long_run(_: bool) -> Score:
    """A long run through faults beside one without."""
    from attacks.soak import ENDS, LONG, soak

    ends = 2 * len(ENDS)
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = soak(Path(folder), LONG, ends)
        except RuntimeError as error:
            return Score("faults in a long run", ends, [f"soak: {error}"])
    what = f"faults in a run of {found['updates']:,} updates"
    return Score(what, sum(found["met"].values()), [f"soak: {problem}" for problem in found["problems"]])


def _each(names: Iterable[str], attack: Callable[[str, Path], str]) -> list[str]:
    lost = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            if problem := attack(name, Path(folder)):
                lost.append(f"{name}: {problem}")
    return lost


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--short", action="store_true", help="a sample of every part but fuzz and soak")
    size.add_argument("--full", action="store_true", help="all of every part")
    parser.add_argument("--part", choices=PARTS, nargs="+", help="only these parts")
    arguments = parser.parse_args()
    parts = arguments.part or [part for part in PARTS if arguments.full or part not in WHOLE]
    if arguments.short and (whole := sorted(set(parts) & set(WHOLE))):
        parser.error(f"--part {whole[0]}: has no sample; give --full")
    console, table = Console(soft_wrap=True), Table("tried", "times", "survived", "lost", "seconds")
    lost = []
    runs = {"files": files, "kills": kills, "folders": folders, "recipes": recipes, "fuzz": fuzz, "soak": long_run}
    for part in parts:
        begun = time.monotonic()
        score = runs[part](arguments.short)
        hurt = len({problem.split(": ")[0] for problem in score.lost})
        row = (score.what, score.tried, score.tried - hurt, hurt, round(time.monotonic() - begun))
        table.add_row(*map(str, row))
        lost += score.lost
    console.print(table)
    for problem in lost:
        console.print(f"lost: {problem}", markup=False)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

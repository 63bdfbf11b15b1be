"""Finishes a learned policy for use: drops its easy operations, tries how many and how strong.

    fastaug tune-policy RECIPE --run runs/learned --out policy.json
    fastaug train RECIPE meta.learn=[] meta.reuse=policy.json        # train + meta, the policy as it is

Evidence that a training has gathered (meta.probabilities: evidence) says which operations harm, and their probabilities
have fallen; and it says which are easy, by the training loss of the images that show them. What is as easy as the image
itself teaches nothing new, so of the operations that are left the harder half is kept. That trains nothing.

Further values of --slots, --strengths (factors on the magnitudes) and --keep are variants to try: each is trained on
the training split for a part of the recipe's epochs, under the same seed and draws, with a whole schedule of its own,
and measured by its mean loss on the meta split, which it does not train on; the best third goes on to trainings of
twice the length (successive halving, Jamieson and Talwalkar 2016) until one is left. Short trainings favour weak
policies: raise --share before believing them (docs/policies.md). Test images play no part. The same command goes on
after a kill. The price is printed.
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from fastaug.atomic_files import write_atomically
from fastaug.augment import load_policy
from fastaug.commands._argument_types import one_or_more, output_file, zero_or_more
from fastaug.commands.study import WIDE, Study, collect, write_once
from fastaug.errors import RecipeError, told
from fastaug.recipe.policy_file import read_policy_file
from fastaug.recipe.reading import as_override, read_recipe
from fastaug.recipe.schema import MOST_SLOTS, Recipe
from fastaug.recipe.shipped import find_recipe
from fastaug.reports.run_tables import Runs

PART = "policy"
LOGITS, STRENGTHS = "policy.logits", "policy.strengths"
DIFFICULTY = "policy_difficulty/"
WEAKEST, STRONGEST = 0.02, 0.98  # magnitudes of a variant
PLAIN = {"sequence": False, "shared_magnitude": False, "tau": 1, "mix": 1}  # forms whose numbers are varied here
APART = 2.0  # standard deviation of z over operations from which they differ by more than chance, which is 1
LEAST = 1e-12  # probability of an operation that is left out


class Variant(NamedTuple):
    """A policy to try: `slots` operations an image, magnitudes times `strength`, all operations or the `hard` half."""

    slots: int
    strength: float
    hard: bool = False

    @property
    def name(self) -> str:
        """Its name as an arm."""
        return f"{'hard' if self.hard else 'all'}-slots{self.slots}-strength{self.strength:g}"


class Rung(NamedTuple):
    """Variants that are trained for `epochs`, and how many of them go on."""

    epochs: int
    kept: int


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug tune-policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every training")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--policy", type=Path, metavar="FILE", help="the policy.json to vary")
    which.add_argument("--run", type=Path, help="or the run folder that holds it")
    parser.add_argument("--slots", type=int, nargs="+", metavar="N", help="operations an image (default: as learned)")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], metavar="F", help="default 1")
    parser.add_argument("--keep", choices=("hard", "all"), nargs="+", default=["hard"], help="default hard")
    parser.add_argument("--share", type=float, default=0.2, help="of train.epochs in the first rung (default .2)")
    parser.add_argument(
        "--seeds", type=zero_or_more, nargs="+", default=[0], metavar="N", help="of every training (default 0)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the run folders")
    parser.add_argument("--name", help="what their names begin with (default tune-RECIPE)")
    parser.add_argument("--jobs", type=one_or_more, default=1, metavar="N", help="runs at a time, of one thread each")
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE", help="the policy file of the best variant"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every repetition here")
    arguments = parser.parse_intermixed_args(argv)
    if not 0 < arguments.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, found {arguments.share}")
    if not all(1 <= slots <= MOST_SLOTS for slots in arguments.slots or ()):
        parser.error(f"--slots must be from 1 to {MOST_SLOTS}, found {' '.join(map(str, arguments.slots))}")
    if not min(arguments.strengths) > 0:
        parser.error("--strengths must be above 0")
    return arguments


# ---- variants ----


def varied(whole: dict[str, Any], variant: Variant) -> dict[str, Any]:
    """The policy file `whole` as a variant; the probabilities of each slot are the mean over the learned ones."""
    piece = copy.deepcopy(whole["parts"][PART])
    rows = [softmax(row) for row in piece["values"][LOGITS]]
    shares = [statistics.mean(column) for column in zip(*rows, strict=True)]
    if variant.hard:
        kept = hard_half(piece, shares[1:])
        operations = [share if name in kept else 0.0 for name, share in zip(names_of(piece), shares[1:], strict=True)]
        scale = sum(shares[1:]) / sum(operations)
        shares = [shares[0], *(scale * share for share in operations)]
    piece["settings"]["slots"] = variant.slots
    piece["values"][LOGITS] = [[math.log(max(share, LEAST)) for share in shares]] * variant.slots
    if variant.strength != 1:
        magnitudes = [variant.strength * (1 + math.tanh(raw / 2)) / 2 for raw in piece["values"][STRENGTHS]]
        piece["values"][STRENGTHS] = [logit(min(max(m, WEAKEST), STRONGEST)) for m in magnitudes]
    piece.pop("summary", None)
    if variant.slots != len(rows):
        piece.pop("start", None)  # what judge_policy.py compares with has as many slots
    return whole | {"parts": whole["parts"] | {PART: piece}}


def names_of(piece: dict[str, Any]) -> list[str]:
    """The names of a policy's operations."""
    return [operation["name"] for operation in piece["settings"]["operations"]]


def hard_half(piece: dict[str, Any], shares: list[float]) -> set[str]:
    """Of the operations that learning left, the half with the larger training losses; empty if these do not differ.

    Left is what has half of the largest probability or more.
    """
    summary = piece.get("summary", {})
    left = [name for name, share in zip(names_of(piece), shares, strict=True) if share >= max(shares) / 2]
    told = {name: summary[f"{DIFFICULTY}{name}"] for name in left if f"{DIFFICULTY}{name}" in summary}
    if len(told) < 2 or statistics.stdev(told.values()) < APART:
        return set()
    return set(sorted(told, key=told.__getitem__)[len(told) // 2 :])


def variants(arguments: argparse.Namespace, file: Path, piece: dict[str, Any]) -> list[Variant]:
    """All variants to try, each once; RecipeError where the harder half is asked for and nothing says which that is."""
    rows = [softmax(row) for row in piece["values"][LOGITS]]
    shares = [statistics.mean(column) for column in zip(*rows, strict=True)]
    if "hard" in arguments.keep and not hard_half(piece, shares[1:]):
        raise RecipeError(
            [
                f"{file}: does not tell which operations are hard, or from too few images; learn it with "
                "meta.probabilities=evidence, longer or with a smaller meta.every, or --keep all"
            ]
        )
    slots = arguments.slots or [piece["settings"]["slots"]]
    found = itertools.product(slots, arguments.strengths, [kept == "hard" for kept in arguments.keep])
    return list(dict.fromkeys(Variant(*values) for values in found))


def softmax(row: list[float]) -> list[float]:
    """The probabilities of a row of logits."""
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def logit(share: float) -> float:
    """The number whose sigmoid is `share`."""
    return math.log(share / (1 - share))


def rungs(count: int, epochs: int, share: float) -> Iterator[Rung]:
    """The rungs for `count` variants: a third of them goes on, to trainings of twice the length.

    Trainings of all `epochs` decide: of those one is left.
    """
    length = max(1, round(share * epochs))
    while count > 1:
        count = 1 if length >= epochs else -(-count // 3)
        yield Rung(min(length, epochs), count)
        length *= 2


# ---- trainings ----


def write_lists(recipe: Recipe, folder: Path) -> int:
    """Lists of splits in which the meta split is what selects; the number of its images."""
    from fastaug.distributed import build_accelerator
    from fastaug.training.build_data import find_data

    splits = find_data(recipe, build_accelerator(recipe)).splits
    if not len(splits.meta):
        raise RecipeError(["data.meta_fraction: there is no meta split to measure by; set it, or add a meta/ folder"])
    folder.mkdir(parents=True, exist_ok=True)
    lists: dict[str, Iterable[object]] = {"train": splits.train, "meta": [], "select": splits.meta, "test": splits.test}
    for name, members in lists.items():
        write_once(folder / f"{name}.txt", "".join(f"{member}\n" for member in members))
    return len(splits.meta)


def write_variants(
    recipe: Recipe, whole: dict[str, Any], tried: list[Variant], runs: Path, name: str
) -> dict[Variant, Path]:
    """The lists of splits that variants are measured by, and a policy file of each."""
    runs.mkdir(parents=True, exist_ok=True)
    write_lists(recipe, runs / f"{name}-splits")
    files = {variant: runs / f"{name}-{variant.name}.json" for variant in tried}
    for variant, file in files.items():
        write_once(file, json.dumps(varied(whole, variant)))
    return files


def trained(arguments: argparse.Namespace, name: str, files: dict[Variant, Path], rung: Rung) -> Runs:
    """The figures of all variants in a rung."""
    lists = arguments.runs / f"{name}-splits"
    held_out = [f"data.splits={lists}", *(f"data.{role}_fraction=0" for role in ("test", "select", "meta"))]
    short = [f"train.epochs={rung.epochs}", "eval.every=0", "run.keep=1"]
    study = Study(
        name=f"{name}-{rung.epochs}",
        recipe=arguments.recipe,
        arms={variant.name: ["meta.learn=[]", as_override("meta.reuse", str(file))] for variant, file in files.items()},
        seeds=arguments.seeds,
        overrides=[],
        last=[*arguments.overrides, *held_out, *short],
        runs=arguments.runs,
        jobs=arguments.jobs,
        figure="select_error",  # test images play no part
    )
    return collect(study)


def table(rung: Rung, runs: Runs, order: list[str]) -> Table:
    """A row for each variant of a rung, the best first."""
    found = Table(f"variant, {rung.epochs} epochs", "loss on the meta split", "error on it", "goes on")
    for place, name in enumerate(order):
        figures = runs[name].values()
        means = [f"{statistics.mean(f[figure] for f in figures):.4f}" for figure in ("select_nll", "select_error")]
        found.add_row(name, *means, "yes" if place < rung.kept else "")
    return found


def tune(arguments: argparse.Namespace) -> int:
    """Trains, tells and writes; the exit code."""
    arguments.recipe = find_recipe(arguments.recipe).resolve()  # a name is none to what starts the trainings
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    file = read_policy_file(arguments.policy or arguments.run)
    if PART not in file.pieces:
        raise RecipeError([f"{file.path}: parts.{PART}: is missing; name a run with meta.learn=[{PART}]"])
    for form, plain in PLAIN.items():
        if (found := file.pieces[PART].settings.get(form, plain)) != plain:
            raise RecipeError(
                [f"{file.path}: parts.{PART}.settings.{form}: {found} cannot be varied; learn it as {plain}"]
            )
    load_policy(file.path)  # a stranger's file: RecipeError where its numbers do not make a policy
    whole, name = json.loads(file.path.read_bytes()), arguments.name or f"tune-{arguments.recipe.stem}"
    tried = variants(arguments, file.path, whole["parts"][PART])
    files = write_variants(recipe, whole, tried, arguments.runs, name) if len(tried) > 1 else {}
    console, rows, spent = Console(width=None if sys.stdout.isatty() else WIDE), [], 0
    for rung in rungs(len(tried), recipe.train.epochs, arguments.share):
        runs = trained(arguments, name, files, rung)
        spent += rung.epochs * len(files) * len(arguments.seeds)
        loss = {arm: statistics.mean(f["select_nll"] for f in runs[arm].values()) for arm in runs}
        order = sorted(loss, key=loss.__getitem__)
        console.print(table(rung, runs, order))
        rows.append({"epochs": rung.epochs, "runs": runs})
        files = {variant: path for variant, path in files.items() if variant.name in order[: rung.kept]}
    best, price = next(iter(files or tried)), spent / recipe.train.epochs
    write_atomically(arguments.out, json.dumps(varied(whole, best)).encode())
    print(f"{arguments.out}: {best.name}, at the price of {price:.1f} trainings")
    if arguments.json:
        figures = {"slots": best.slots, "strength": best.strength, "trainings": price}
        arguments.json.write_text(json.dumps({"rungs": rows, "figures": figures}, indent=2) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 when a run failed, 2 for a policy or recipe that cannot be used, 75 when it was stopped."""
    return told(lambda: tune(parse(argv)))

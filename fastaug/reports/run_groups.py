"""Runs grouped by their recipe without its seed: what they share, mean and sd of their figures, paired differences."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from fastaug.recipe.reading import differences
from fastaug.recipe.schema import Recipe
from fastaug.reports.html_page import finite
from fastaug.reports.run_files import RunFiles
from fastaug.reports.run_tables import Runs, p_value, spread
from fastaug.reports.run_tables import differences as paired

# Of the test split: its name, whether it is a share, whether more is better.
FIGURES = {
    "top1": ("top-1", True, True),
    "top5": ("top-5", True, True),
    "balanced_top1": ("balanced top-1", True, True),
    "f1_macro": ("F1, macro", True, True),
    "mean_ap": ("mAP", True, True),
    "f1_micro": ("F1, micro", True, True),
    "exact": ("all classes right", True, True),
    "nll": ("NLL", False, False),
    "bce": ("BCE", False, False),
    "ece": ("ECE", True, False),
}
OWN = ("run.dir", "run.seed", "data.split_seed")  # keys in which the runs of a group may differ
BY_SEED = ("data.labels", "data.splits", "meta.reuse", "run.plant_like")  # may name a file of the seed


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, or one run whose recipe cannot be read."""

    name: str
    runs: list[RunFiles]

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of the first."""
        return self.runs[0].recipe

    def figures(self) -> list[RunFiles]:
        """Its runs with a result."""
        return [run for run in self.runs if run.test]


class Cell(NamedTuple):
    """Mean and sample standard deviation of a figure, None where there are too few runs; the best mean of a column."""

    runs: int
    mean: float | None
    sd: float | None
    best: bool = False


class Difference(NamedTuple):
    """How much more a figure is than in the first group, over pairs of one seed; the p-value of the paired t-test."""

    pairs: int
    mean: float | None
    sd: float | None
    p: float | None


def grouped(runs: Sequence[RunFiles]) -> list[Group]:
    """Groups in the order of their first runs."""
    found: dict[str, list[RunFiles]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    names = [_name(each) for each in found.values()]
    seen: dict[str, int] = {}
    groups = []
    for name, each in zip(names, found.values(), strict=True):
        seen[name] = seen.get(name, 0) + 1
        groups.append(Group(name if seen[name] == 1 else f"{name} ({seen[name]})", each))
    return groups


def settings(recipe: Recipe) -> dict[str, Any]:
    """{"section.key": (default, value)} of what is not the default, but for what is a run's own."""
    return {key: values for key, values in differences(Recipe(), recipe).items() if key not in OWN}


def _key(run: RunFiles) -> str:
    if run.recipe is None:
        return f"run {run.path}"
    values = {f"{section}.{key}": value for section, keys in asdict(run.recipe).items() for key, value in keys.items()}
    values |= {key: _without_seed(values[key], run.recipe.run.seed) for key in BY_SEED}
    return repr(sorted((key, value) for key, value in values.items() if key not in OWN))


def _without_seed(value: Any, seed: int) -> Any:
    """A path in which the seed stands for any."""
    return re.sub(rf"(?<![\d.]){seed}(?![\d.]*\d)", "{seed}", value) if isinstance(value, str) else value


def _name(runs: Sequence[RunFiles]) -> str:
    """What the names of runs of one group have in common."""
    if len(runs) == 1:
        return runs[0].name
    bare = {re.sub(rf"[-_. ]*(seed)?[-_. ]*{run.seed}$", "", run.name) for run in runs}
    return (len(bare) == 1 and bare.pop()) or f"{runs[0].name} and {len(runs) - 1} more"


# ---- figures ----


def known_figures(groups: Sequence[Group]) -> list[str]:
    """The figures that any run has."""
    return [name for name in FIGURES if any(finite(run.test.get(name)) is not None for g in groups for run in g.runs)]


def table(groups: Sequence[Group]) -> list[tuple[Group, list[Cell]]]:
    """A row for each group, a cell for each of `known_figures`."""
    names = known_figures(groups)
    rows = [[_cell(group, name) for name in names] for group in groups]
    if len(groups) > 1:
        for column, name in enumerate(names):
            means = [mean for row in rows if (mean := row[column].mean) is not None]
            best = (max if FIGURES[name][2] else min)(means)
            for row in rows:
                row[column] = row[column]._replace(best=row[column].mean == best)
    return list(zip(groups, rows, strict=True))


def _cell(group: Group, name: str) -> Cell:
    values = [value for run in group.runs if (value := finite(run.test.get(name))) is not None]
    sd = spread(values) if len(values) > 1 else None
    return Cell(len(values), statistics.mean(values) if values else None, sd)


def compared(groups: Sequence[Group]) -> list[tuple[Group, list[Difference]]]:
    """Each group less the first, paired by seed; those without a pair are left out."""
    runs: Runs = {group.name: _by_seed(group) for group in groups}
    found = []
    for group in groups[1:]:
        cells = [_difference(paired(runs, group.name, groups[0].name, name)) for name in known_figures(groups)]
        if any(cell.pairs for cell in cells):
            found.append((group, cells))
    return found


def _by_seed(group: Group) -> dict[int, dict[str, Any]]:
    """The first run of each seed."""
    found: dict[int, dict[str, Any]] = {}
    for run in group.figures():
        known = {name: value for name in FIGURES if (value := finite(run.test.get(name))) is not None}
        if run.seed is not None:
            found.setdefault(run.seed, known)
    return found


def _difference(apart: list[float]) -> Difference:
    if not apart:
        return Difference(0, None, None, None)
    return Difference(len(apart), statistics.mean(apart), spread(apart) if len(apart) > 1 else None, p_value(apart))


def cautions(groups: Sequence[Group]) -> list[str]:
    """Sentences about what makes the figures of the runs hard to compare."""
    ended = [run for group in groups for run in group.figures()]
    found = []
    if missing := [run.name for group in groups for run in group.runs if not run.test]:
        found.append(f"Without a result, and so in no mean: {', '.join(missing)}.")
    if len({tuple(run.classes) for run in ended if run.classes}) > 1:
        found.append("The runs have different classes: their figures are not of one task.")
    else:
        found += _other_images(groups)
    if len({bool(run.test.get("weights") == "ema") for run in ended}) > 1:
        found.append("Some figures are of averaged weights (ema), others of raw ones.")
    for group in groups:
        seeds = [run.seed for run in group.figures()]
        if any(seed is not None and seeds.count(seed) > 1 for seed in seeds):
            found.append(f"{group.name}: a seed occurs more than once; pairs are made with its first run.")
    return found


def _other_images(groups: Sequence[Group]) -> list[str]:
    """Whether runs were tested on the same images: those of one seed, which are compared, and those of one group."""
    found, seeds = [], {run.seed for group in groups for run in group.figures()}
    if any(_differ([run for group in groups for run in group.figures() if run.seed == seed]) for seed in seeds):
        found.append("Runs of one seed were not tested on the same images: differences are of the images too.")
    elif any(_differ(group.figures()) for group in groups):
        found.append("Each seed has test images of its own: the spread is of the images too.")
    return found


def _differ(runs: Sequence[RunFiles]) -> bool:
    return len({finite(run.test.get("images")) for run in runs}) > 1 or len(_tested(runs)) > 1


def _tested(runs: Sequence[RunFiles]) -> set[bytes]:
    """The sets of test images, of those runs that kept which they were."""
    tested = (run.samples.of("test")["id"] for run in runs if run.samples is not None)
    return {np.sort(ids).tobytes() for ids in tested if len(ids)}

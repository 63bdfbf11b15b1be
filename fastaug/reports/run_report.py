"""The report of runs, one page: results with mean and sd over seeds, curves, and of each run what its files tell."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from fastaug.reports import run_details, run_groups, svg
from fastaug.reports.batch_grid import COLUMNS, Shown, grid_cells
from fastaug.reports.html_page import rendered
from fastaug.reports.run_details import Part, RunData
from fastaug.reports.run_files import RunFiles
from fastaug.reports.run_groups import FIGURES, Group
from fastaug.reports.svg import Chart
from fastaug.reports.thumbnails import Thumbnail, encoded

GRID_SIDE = 192  # pixels of a picture of the grid
CURVES = (  # (event, figure, title) of the charts, of which those of several labels replace top-1
    ("train", "loss", "training loss"),
    ("train", "lr", "learning rate"),
    *((split, name, f"{FIGURES[name][0]} of {split}") for name in ("top1", "mean_ap") for split in ("select", "test")),
)


class GridCell(NamedTuple):
    """A picture of the grid, None where there is no partner, its title and the lines below it."""

    title: str
    picture: Thumbnail | None
    text: Sequence[str]


def grid_of(shown: Shown) -> list[list[GridCell]]:
    """Rows of a batch as the network gets it, with the masses of the targets; no partners where none is mixed in."""
    rows = [
        [
            GridCell(title, None if cell.image is None else _picture(cell.image), cell.text)
            for title, cell in zip(COLUMNS, row, strict=True)
        ]
        for row in grid_cells(*shown)
    ]
    used = {cell.title for row in rows for cell in row if cell.picture is not None}
    return [[cell for cell in row if cell.title in used] for row in rows]


def _picture(image: Tensor) -> Thumbnail:
    return encoded(Image.fromarray(image.numpy()), GRID_SIDE)


def page(title: str, groups: Sequence[Group], data: Mapping[str, RunData], grids: Mapping[str, Part | None]) -> bytes:
    """The page of the runs in `groups`. `data`: of each run by name; `grids`: of each group, see `grid_of`."""
    runs = [run for group in groups for run in group.runs]
    colours, names = _colours(groups), run_groups.known_figures(groups)
    return rendered(
        "report.html",
        script="sort.js",
        title=title,
        groups=groups,
        runs=runs,
        names=names,
        figures=[FIGURES[name] for name in names],
        results=run_groups.table(groups),
        differences=run_groups.compared(groups),
        notes=run_groups.cautions(groups),
        curves=curves(groups, colours),
        curves_why="" if any(run.lines for run in runs) else run_details.why_not(runs[0], "metrics.jsonl"),
        legend_of_runs=[(run.name, colours[run.name]) for run in runs] if len(groups) == 1 else _group_legend(groups),
        keys=settings(groups),
        unreadable=[(run.name, run.problems["recipe.yaml"]) for run in runs if "recipe.yaml" in run.problems],
        grids=grids,
        details={run.name: _details(run, data[run.name]) for run in runs},
    )


def _colours(groups: Sequence[Group]) -> dict[str, int]:
    """A colour for each run: its own where there is one group, else that of its group."""
    if len(groups) == 1:
        return {run.name: number for number, run in enumerate(groups[0].runs)}
    return {run.name: number for number, group in enumerate(groups) for run in group.runs}


def _group_legend(groups: Sequence[Group]) -> list[tuple[str, int]]:
    return [(group.name, number) for number, group in enumerate(groups)]


def curves(groups: Sequence[Group], colours: Mapping[str, int]) -> list[Chart]:
    """Loss, rate and accuracy of all runs over their epochs; a chart of which no run has two values is left out."""
    runs = [run for group in groups for run in group.runs]
    found = []
    for event, name, title in CURVES:
        lines = [svg.Line(run.name, colours[run.name], run_details.series(run.of(event), name)) for run in runs]
        curve = any(len(line.points) > 1 for line in lines)
        if curve and (drawing := svg.lines(lines, ("epoch", title))) is not None:
            found.append(Chart(title, drawing))
    return found


class Key(NamedTuple):
    """A key of the recipes that is not everywhere the default: its value in each group, and whether they differ."""

    name: str
    default: str
    values: list[str]
    differs: bool


def settings(groups: Sequence[Group]) -> list[Key]:
    """The keys in which a group is not the default, those in which the groups differ first."""
    each = [{} if group.recipe is None else run_groups.settings(group.recipe) for group in groups]
    found = []
    for name in dict.fromkeys(name for values in each for name in values):
        default = next(values[name][0] for values in each if name in values)
        told = [
            "not known" if group.recipe is None else _told(values[name][1] if name in values else default)
            for group, values in zip(groups, each, strict=True)
        ]
        found.append(Key(name, _told(default), told, len(set(told)) > 1))
    return sorted(found, key=lambda key: not key.differs)


def _told(value: Any) -> str:
    """A value of a recipe as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ", ".join(_told(each) for each in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _details(run: RunFiles, data: RunData) -> dict[str, Any]:
    return {
        "facts": run_details.facts(run),
        "calibration": run_details.calibration(run),
        "confusion": run_details.confusion(run),
        "classes": run_details.class_rows(run),
        "mistakes": run_details.mistakes(run, data),
        "labels": run_details.labels(run, data),
        "policy": run_details.policy(run),
        "speed": run_details.speed(run),
        "skipped": run_details.skipped(run),
    }

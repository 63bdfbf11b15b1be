"""The parts of a report that are of one run: each is what to show, or in one line why there is nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastaug.data.build import DataParts
from fastaug.evaluation.sample_file import FILE, Samples
from fastaug.reports import svg
from fastaug.reports.html_page import as_number, as_percent, as_seconds, finite
from fastaug.reports.label_table import label_table
from fastaug.reports.policy_page import NOTHING, PROBABILITY
from fastaug.reports.run_files import RunFiles, mapping, mappings
from fastaug.reports.svg import Chart
from fastaug.reports.thumbnails import Thumbnail, thumbnail

MISTAKES, LABELS, SKIPPED, PAIRS = 24, 12, 100, 20  # of each the most that are shown
CLASS = ("class", "images", "predicted", "precision", "recall", "f1")  # columns of result.json
PAIR = ("class", "taken_for", "images", "share")
MATRIX = 30  # classes of which a matrix can be read
MOST_LINES = 16  # of a chart of learned numbers


class Part(NamedTuple):
    """What to show, or why there is nothing."""

    value: Any = None
    why: str = ""


class RunData(NamedTuple):
    """The data of a run as they are now, if they are still those that it was trained on; else why not."""

    parts: DataParts | None
    why: str = ""


class Image(NamedTuple):
    """An image with what the network says of it."""

    id: int
    path: str
    given: str
    given_share: float
    named: str
    named_share: float
    picture: Thumbnail


def why_not(run: RunFiles, file: str) -> str:
    """In one line why a part is missing that `file` would tell."""
    return f"{file} {run.problems.get(file, 'does not tell')}."


# ---- what was run ----


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """What is known of a run besides its recipe and its figures."""
    result, told = run.result, []
    told.append(("state", run.state()))
    if run.seed is not None and run.recipe is not None:
        told.append(("seed", f"{run.seed}, of the splits {run.recipe.data.split_seed}"))
        told.append(("data", str(run.recipe.data.root)))
    if run.classes:
        told.append(("classes", as_number(len(run.classes))))
    told.append(("images", splits_of(run)))
    if result:
        known = {"processes": as_number(result.get("processes")), "device": str(result.get("device", ""))}
        told.append(("machine", f"{known['processes']} × {known['device']}"))
        told.append(("training", as_seconds(result.get("train_seconds"))))
        told.append(("images/s", as_number(result.get("images_per_second"), ".0f")))
        told.append(("weights tested", str(run.test.get("weights", ""))))
        told.append(("parameters", as_number(result.get("parameters"))))
        told += [
            (name.removesuffix("_mib").replace("_", " "), f"{as_number(value, '.0f')} MiB")
            for name, value in result.items()
            if name.startswith("peak_")
        ]
        told.append(("loading", str(result.get("source", ""))))
        told.append(("commit", str(result.get("commit") or "not known")[:12]))
        told.append(("versions", ", ".join(f"{name} {value}" for name, value in versions(run).items())))
    return [(name, text) for name, text in told if text]


def versions(run: RunFiles) -> dict[str, str]:
    """Versions of libraries that the run was made with."""
    return {name: str(value) for name, value in mapping(run.result.get("versions")).items()}


def splits_of(run: RunFiles) -> str:
    """How many images each split has, as far as the run's files tell."""
    counts: dict[str, Any]
    if run.samples is not None:
        counts = {name: len(run.samples.of(name)) for name in ("train", "select", "test")}
    else:
        counts = {name: mapping(run.result.get(name)).get("images") for name in ("select", "test")}
    return ", ".join(f"{as_number(n)} {name}" for name, n in counts.items() if n)


# ---- figures of the test split ----


def held_out(samples: Samples) -> tuple[str, Samples]:
    """The statistics of test; of select where there are none."""
    return next(
        ((name, own) for name in ("test", "select") if len(own := samples.of(name))), ("test", samples.of("test"))
    )


def bins_of(samples: Samples, count: int) -> list[svg.Bin]:
    """`count` equal bins of the largest probability, as ECE has them (Guo et al. 2017); NaN is in none.

    The last network's prediction is the given class or the likeliest other one, whichever is likelier.
    """
    given, other = (samples[name].astype(np.float64) for name in ("probability", "other_probability"))
    known = np.isfinite(given) & np.isfinite(other)
    sure, right = np.maximum(given, other)[known], (given > other)[known]
    place = np.clip(np.ceil(sure * count).astype(int) - 1, 0, count - 1)
    images = np.bincount(place, minlength=count)
    parts = (np.bincount(place, weights, count) / np.maximum(images, 1) for weights in (sure, right))
    return [svg.Bin(int(n), float(c), float(a)) for n, c, a in zip(images, *parts, strict=True)]


def ece_of(bins: Sequence[svg.Bin]) -> float:
    """The expected calibration error of the bins."""
    total = sum(each.images for each in bins)
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / max(total, 1)


def calibration(run: RunFiles) -> Part:
    """The reliability diagram of the test images."""
    if run.samples is None:
        return Part(why=why_not(run, FILE))
    split, own = held_out(run.samples)
    count = finite(run.test.get("ece_bins")) or 15
    bins = bins_of(own, int(min(max(count, 1), 100)))
    if not (images := sum(each.images for each in bins)):
        return Part(why=f"{FILE} has no image of {split} with a known probability.")
    chart = Chart("Reliability", svg.reliability(bins, as_percent(ece_of(bins))))
    return Part({"chart": chart, "images": images, "split": split, "ece": ece_of(bins), "bins": len(bins)})


def confusion(run: RunFiles) -> Part:
    """The matrix, where it can be read, and the pairs that are confused most."""
    rows = {name: mapping(row) for name, row in mapping(run.test.get("confusion")).items()}
    if not rows:
        return Part(why=_no_figures(run))
    names = [str(row.get("class")) for row in mappings(run.test.get("classes"))] or list(rows)
    drawing = None
    if len(names) <= MATRIX:
        counts = [[int(finite(rows.get(a, {}).get(b)) or 0) for b in names] for a in names]
        drawing = Chart("Confusion", svg.matrix(counts, names))
    return Part({"chart": drawing, "classes": len(names), "pairs": _rows(run.test.get("confused"), PAIR)[:PAIRS]})


def class_rows(run: RunFiles) -> Part:
    """A row for each class: images, precision, recall, F1."""
    rows = _rows(run.test.get("classes"), CLASS)
    return Part(rows) if rows else Part(why=_no_figures(run))


def _rows(value: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The mappings in a list, each with these columns and no other."""
    return [{name: row.get(name) for name in columns} for row in mappings(value)]


def _no_figures(run: RunFiles) -> str:
    if run.test:
        return "result.json has no figures of single classes: the run is of an earlier version, or of several labels."
    return why_not(run, "result.json")


def mistakes(run: RunFiles, data: RunData) -> Part:
    """The images of test of whose wrong class the network is surest."""
    if run.samples is None:
        return Part(why=why_not(run, FILE))
    split, own = held_out(run.samples)
    wrong = np.flatnonzero(own["other_probability"] > own["probability"])
    if not len(wrong):
        return Part(why=f"Not one of {len(own):,} images of {split} is mistaken.")
    first = wrong[np.lexsort((own["id"][wrong], -own["other_probability"][wrong]))][:MISTAKES]
    images = [_image(run, data, own, int(row), int(own["other"][row])) for row in first]
    return Part({"images": images, "mistaken": len(wrong), "of": len(own), "split": split, "why": data.why})


def labels(run: RunFiles, data: RunData) -> Part:
    """The training images whose label looks most wrong, and how many do."""
    if run.samples is None:
        return Part(why=why_not(run, FILE))
    table = label_table(run.samples, "train", run.recipe, run.path)
    if not table.flagged:
        return Part(why=f"Not one label of {len(table):,} training images looks wrong.")
    shown = range(min(LABELS, table.flagged))
    images = [_image(run, data, table.samples, row, int(table.predicted[row])) for row in shown]
    told = table.estimate
    number = "" if told is None else "{:.0f} labels are wrong (95 % interval {:.0f} to {:.0f})".format(*told.wrong)
    found = {"images": images, "flagged": table.flagged, "of": len(table), "number": number, "why": data.why}
    return Part(found | {"page": (run.path / "labels.html").is_file(), "run": str(run.path)})


def _image(run: RunFiles, data: RunData, own: Samples, row: int, named: int) -> Image:
    image, given, picture, path = int(own["id"][row]), int(own["given"][row]), Thumbnail(problem="no picture"), ""
    if data.parts is not None and data.parts.index is not None:
        picture, path = thumbnail(data.parts.index, image), data.parts.name_of(image)
    shares = float(own["probability"][row]), float(own["other_probability"][row])
    return Image(image, path, run.class_name(given), shares[0], run.class_name(named), shares[1], picture)


# ---- over time ----


def series(lines: Sequence[Mapping[str, Any]], name: str) -> list[svg.Point]:
    """(epoch, value) of every line that has both, NaN where the value is no finite number."""
    found = []
    for line in lines:
        epoch, value = finite(line.get("epoch")), line.get(name)
        if epoch is not None and name in line:
            found.append((epoch, float("nan") if finite(value) is None else float(value)))  # type: ignore[arg-type]
    return found


def policy(run: RunFiles) -> Part:
    """What was learned, over the epochs: numbers of one kind in one chart."""
    if not (lines := run.of("learned")):
        learns = run.recipe is not None and run.recipe.meta.learn
        return Part(
            why=why_not(run, "metrics.jsonl") if learns else "The recipe learns no policy (meta.learn is empty)."
        )
    names = dict.fromkeys(name for line in lines for name, value in line.items() if finite(value) is not None)
    kinds: dict[str, list[str]] = {}
    for name in names:
        if name not in ("step", "epoch", NOTHING) and "saturation" not in name and "_sd/" not in name:
            kinds.setdefault(name.partition("/")[0], []).append(name)
    charts = [_learned(lines, kind, members, NOTHING in names) for kind, members in kinds.items()]
    return Part([chart for chart in charts if chart is not None])


def _learned(lines: Sequence[Mapping[str, Any]], kind: str, members: Sequence[str], nothing: bool) -> Chart | None:
    title, many = kind.replace("_", " "), len(members) > MOST_LINES
    stacked = f"{kind}/" == PROBABILITY and nothing
    shown = [NOTHING, *members] if stacked else sorted(members, key=lambda name: -_moved(lines, name))[:MOST_LINES]
    each = [
        svg.Line("(nothing)" if name == NOTHING else name.rpartition("/")[2], number, series(lines, name))
        for number, name in enumerate(shown)
    ]
    drawing = svg.shares(each, ("epoch", title)) if stacked else None
    drawing = drawing or svg.lines(each, ("epoch", title))
    if drawing is None:
        return None
    more = f", the {MOST_LINES} of {len(members)} that move most" if many and not stacked else ""
    return Chart(title + more, drawing, [(line.name, line.colour) for line in each] if len(each) > 1 else ())


def _moved(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    """How far apart the values of a learned number are."""
    values = [y for _, y in series(lines, name) if math.isfinite(y)]
    return max(values, default=0.0) - min(values, default=0.0)


def speed(run: RunFiles) -> Part:
    """Images a second and waiting over the epochs, and where the time of a step goes if that was measured."""
    lines = run.of("train")
    charts = [
        Chart(title, drawing)
        for name, title in (("images_per_second", "images/s"), ("wait_share", "share of the time waiting for a batch"))
        if (drawing := svg.lines([svg.Line(run.name, 0, series(lines, name))], ("epoch", title))) is not None
    ]
    figures = mapping(run.profile.get("figures"))
    stages = [
        (name.removesuffix("_ms"), finite(value), finite(figures.get(name.replace("_ms", "_share"))))
        for name, value in figures.items()
        if name.endswith("_ms") and name != "step_ms" and finite(value) is not None
    ]
    said = [str(run.profile["limited_by"])] if "limited_by" in run.profile else []
    return Part({"charts": charts, "stages": stages, "limited_by": said, "run": str(run.path)})


def skipped(run: RunFiles) -> Part:
    """The damaged images that were left out."""
    if run.skipped:
        return Part({"rows": _rows(run.skipped[:SKIPPED], ("path", "reason")), "total": len(run.skipped)})
    if not run.lines:
        return Part(why=why_not(run, "metrics.jsonl"))
    return Part(why="No image was skipped.")

"""What the checks beside an evaluation found, as lines of text and as one page of charts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastaug.reports import svg
from fastaug.reports.html_page import as_percent, rendered
from fastaug.reports.svg import Chart

Figures = dict[str, Any]


class Section(NamedTuple):
    """What the page shows of one check: its title, its charts, and the lines that the screen has too."""

    title: str
    charts: Sequence[Chart]
    lines: Sequence[str]


def check_lines(figures: Figures) -> list[str]:
    """A few lines for each check among the figures of an evaluation."""
    return [line for section in sections(figures) for line in section.lines]


def page(title: str, about: str, figures: Figures) -> bytes:
    """The HTML file of an evaluation's checks, everything in it. `about`: a line on what was evaluated."""
    return rendered("checks.html", title=title, about=about, sections=sections(figures))


def sections(figures: Figures) -> list[Section]:
    """A section for each check among the figures, in the order of the page."""
    return [
        Section(title, charts(figures[name]), lines(figures[name]))
        for name, (title, lines, charts) in _CHECKS.items()
        if name in figures
    ]


def _calibration_lines(found: Figures) -> list[str]:
    before, after = found["before"], found["after"]
    if after is None:
        return [found["not_fitted"], f"NLL {before['nll']:.4f} and ECE {before['ece']:.4f} as the network is"]
    return [
        f"temperature {found['temperature']:.4f}, fitted on {found['fitted_on']} ({found['fitted_on_images']} images); "
        f"of {found['images']} others: NLL {before['nll']:.4f} -> {after['nll']:.4f}, "
        f"ECE {before['ece']:.4f} -> {after['ece']:.4f}"
    ]


def _occlusion_lines(curves: Figures) -> list[str]:
    lines = []
    for way, points in curves.items():
        lines.append(f"occlusion by {way}: in view, top-1, confidence")
        lines += [f"  {p['visibility']:.3f}  {p['top1']:.4f}  {p['confidence']:.4f}" for p in points]
    return lines


def _ood_lines(found: Figures) -> list[str]:
    lines = [f"{found['images']} images against {found['ood_images']} of {found['root']}"]
    for name in ("max_softmax", "energy"):
        lines.append(f"  {name}: AUROC {found[name]['auroc']:.4f}, FPR at 95 % TPR {found[name]['fpr95']:.4f}")
    return lines


def _corruption_lines(found: Figures) -> list[str]:
    width = max(map(len, found["errors"]))
    header = "  ".join(f"{severity:>6}" for severity in found["severities"])
    lines = [f"errors under corruptions, parameters of {found['parameters']}; clean {found['clean_error']:.4f}"]
    lines.append(f"{'severity':<{width}}  {header}    mean")
    for name, row in found["errors"].items():
        cells = "  ".join(f"{error:.4f}" for error in row.values())
        lines.append(f"{name:<{width}}  {cells}  {found['mean_errors'][name]:.4f}")
    lines.append(f"mean corruption error {found['mce']:.4f}, not normalised")
    if found["mce_alexnet"] is not None:
        lines.append(f"mCE {found['mce_alexnet']:.4f} of AlexNet's, with procedural frost")
    return lines


def _label_map_lines(found: Figures) -> list[str]:
    counted = f"{found['images']} images, {found['left_out']} left out, {found['outputs']} outputs"
    return [f"top-1 by {found['file']}: {found['top1']:.4f} ({counted})"]


def _no_charts(found: Figures) -> list[Chart]:  # noqa: ARG001
    return []


def _calibration_charts(found: Figures) -> list[Chart]:
    """The reliability diagram as the network is, and with its logits divided by T."""
    each = [("As the network is", found["before"])]
    if found["after"] is not None:
        each.append((f"With T = {found['temperature']:.3f}", found["after"]))
    return [Chart(title, svg.reliability(_bins(one["reliability"]), as_percent(one["ece"]))) for title, one in each]


def _bins(rows: Sequence[Figures]) -> list[svg.Bin]:
    return [svg.Bin(row["images"], row["confidence"] or 0.0, row["accuracy"] or 0.0) for row in rows]


def _occlusion_charts(curves: Figures) -> list[Chart]:
    """Accuracy and confidence over the share in view, by the way of occlusion."""
    found = []
    for way, points in curves.items():
        series = {name: [(p["visibility"], p[key]) for p in points] for name, key in _OF_OCCLUSION.items()}
        found += _chart(f"Under occlusion by {way}", ("share in view", "accuracy and confidence"), series)
    return found


def _corruption_charts(found: Figures) -> list[Chart]:
    """Error over severity, a line for each corruption."""
    curves = {name: [(float(s), error) for s, error in row.items()] for name, row in found["errors"].items()}
    return _chart(f"Error, parameters of {found['parameters']}", ("severity", "error"), curves)


def _chart(title: str, names: tuple[str, str], curves: dict[str, list[svg.Point]]) -> list[Chart]:
    """The curves between 0 and 1 as one chart; none where no value is known. `names`: of what goes across, and up."""
    lines = [svg.Line(name, number, sorted(points)) for number, (name, points) in enumerate(curves.items())]
    drawing = svg.lines(lines, names, (0.0, 1.0))
    return [] if drawing is None else [Chart(title, drawing, [(line.name, line.colour) for line in lines])]


_OF_OCCLUSION = {"accuracy": "top1", "confidence": "confidence"}
_CHECKS: dict[str, tuple[str, Callable[[Figures], list[str]], Callable[[Figures], list[Chart]]]] = {
    "calibration": ("Calibration", _calibration_lines, _calibration_charts),
    "occlusion": ("Occlusion", _occlusion_lines, _occlusion_charts),
    "ood": ("Another set", _ood_lines, _no_charts),
    "corruptions": ("Common corruptions", _corruption_lines, _corruption_charts),
    "label_map": ("Label map", _label_map_lines, _no_charts),
}

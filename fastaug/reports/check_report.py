"""What the checks beside an evaluation found, as lines of text and as charts."""

import io
from typing import Any

from PIL import Image

from fastaug.reports.charts import lines_chart

Figures = dict[str, Any]


def check_lines(figures: Figures) -> list[str]:
    """A few lines for each check among the figures of an evaluation."""
    makers = {
        "calibration": _calibration_lines,
        "occlusion": _occlusion_lines,
        "ood": _ood_lines,
        "corruptions": _corruption_lines,
        "label_map": _label_map_lines,
    }
    return [line for name, lines in makers.items() if name in figures for line in lines(figures[name])]


def _calibration_lines(found: Figures) -> list[str]:
    before, after = found["before"], found["after"]
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


def check_charts(figures: Figures) -> dict[str, Image.Image]:
    """The charts of what was measured, by file name without ending."""
    charts = {}
    if "calibration" in figures:
        charts["reliability"] = _reliability(figures["calibration"])
    for way, points in figures.get("occlusion", {}).items():
        points = sorted(points, key=lambda p: p["visibility"])
        series = {"accuracy": [p["top1"] for p in points], "confidence": [p["confidence"] for p in points]}
        charts[f"occlusion_{way}"] = lines_chart(
            f"Accuracy and confidence under occlusion by {way}",
            [p["visibility"] for p in points],
            series,
            bounds=(0.0, 1.0),
            across="share in view",
        )
    if "corruptions" in figures:
        found = figures["corruptions"]
        errors = {name: list(row.values()) for name, row in found["errors"].items()}
        charts["corruptions"] = lines_chart(
            f"Error under corruptions, parameters of {found['parameters']}",
            found["severities"],
            errors,
            bounds=(0.0, 1.0),
            across="severity",
        )
    return charts


def _reliability(found: Figures) -> Image.Image:
    """Accuracy against confidence before and after; perfect calibration is the diagonal.

    Points stand at the middles of those bins that hold images both times.
    """
    rows = list(zip(found["before"]["reliability"], found["after"]["reliability"], strict=True))
    rows = [pair for pair in rows if all(row["images"] for row in pair)] or rows[:1]
    middles = [(row["from"] + row["to"]) / 2 for row, _ in rows]
    names = ("before", f"T = {found['temperature']:.3f}")
    series = {name: [pair[i]["accuracy"] or 0.0 for pair in rows] for i, name in enumerate(names)}
    title = "Reliability: accuracy of images by confidence"
    return lines_chart(title, middles, {"calibrated": middles, **series}, bounds=(0.0, 1.0), across="confidence")


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()

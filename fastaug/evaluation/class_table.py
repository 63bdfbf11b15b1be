"""Figures of single classes: precision, recall, F1, what each is taken for; the worst classes and confused pairs."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastaug.console import Console
from fastaug.data.class_names import shown

WORST, PAIRS = 5, 5  # classes and pairs that the screen shows
MOST_PAIRS = 20  # that result.json lists by themselves
DETAILS = ("classes", "confusion", "confused", "worst_classes")  # of figures, what is more than a number or two

Pairs = dict[tuple[int, int], int]  # (true class, predicted class) -> images, of those that occur


def class_details(sums: Tensor, pairs: Pairs, names: Sequence[str]) -> dict[str, Any]:
    """What result.json says of classes, from their hits, predictions and images [3, C] and the pairs that occur.

    classes: a row for each, in the order of the outputs; precision is None of one that is never predicted, recall of
    one without images. confusion: {true class: {predicted class: images}}, without zeros. confused: the pairs of two
    different classes that most images are of. worst_classes: names by F1, the worst first, of those with images.
    """
    rows = [_row(name, *values) for name, values in zip(names, sums.T.tolist(), strict=True)]
    confusion: dict[str, dict[str, int]] = {}
    for (label, named), count in sorted(pairs.items()):
        confusion.setdefault(names[label], {})[names[named]] = count
    wrong = sorted(((n, a, b) for (a, b), n in pairs.items() if a != b), key=lambda each: (-each[0], *each[1:]))
    confused = [
        {"class": names[a], "taken_for": names[b], "images": n, "share": n / rows[a]["images"]}
        for n, a, b in wrong[:MOST_PAIRS]
    ]
    with_images = sorted((row for row in rows if row["images"]), key=lambda row: (row["f1"], -row["images"]))
    worst = [row["class"] for row in with_images[:WORST]]
    return {"classes": rows, "confusion": confusion, "confused": confused, "worst_classes": worst}


def _row(name: str, hits: int, predicted: int, images: int) -> dict[str, Any]:
    return {
        "class": name,
        "images": images,
        "predicted": predicted,
        "precision": hits / predicted if predicted else None,
        "recall": hits / images if images else None,
        "f1": 2 * hits / (predicted + images) if predicted + images else None,
    }


def without_details(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that a log line has."""
    return {name: value for name, value in figures.items() if name not in DETAILS}


def print_worst(console: Console, figures: dict[str, Any]) -> None:
    """Prints the worst classes and the pairs that are confused most; nothing without any, or of several labels."""
    if "classes" not in figures:
        return
    rows = {row["class"]: row for row in figures["classes"]}
    bad = [rows[name] for name in figures["worst_classes"] if rows[name]["f1"] < 1]
    if bad:
        console.print("worst classes by F1:")
        for line in table_lines(bad):
            console.print(f"  {line}")
    for pair in figures["confused"][:PAIRS]:
        names = f"{shown(pair['class'])} taken for {shown(pair['taken_for'])}"
        console.print(f"  {names}: {pair['images']} images, {pair['share']:.1%} of the class")


def table_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of `class_details` as aligned text, a heading first."""
    width = max([len("class"), *(len(shown(row["class"])) for row in rows)])
    cells = [
        f"{shown(row['class']):<{width}}  {_ratio(row['f1'])}  {_ratio(row['precision']):>9}  {_ratio(row['recall'])}  "
        f"{row['images']:>6}"
        for row in rows
    ]
    return [f"{'class':<{width}}  {'F1':<6}  precision  recall  images", *cells]


def _ratio(value: float | None) -> str:
    return f"{'-':<6}" if value is None else f"{value:.4f}"

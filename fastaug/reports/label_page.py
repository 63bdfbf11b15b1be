"""labels.html: the most suspicious labels of a run on one page, with pictures; ticked rows become a file of labels."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from fastaug.data.build import DataParts
from fastaug.data.splits import ROLES
from fastaug.evaluation.label_estimate import UNEXPLAINED
from fastaug.reports.html_page import rendered
from fastaug.reports.label_table import LabelTable, replaced
from fastaug.reports.thumbnails import thumbnail

PAIRS, SHARES = 30, (0.1, 0.25, 0.5, 1.0, 1.5)  # pairs of classes shown; rows of the precision, of the wrong labels


class Row(NamedTuple):
    """An image of the list: its id, classes by number, what the network says of it."""

    split: str
    id: int
    given: int
    looks: int
    probability: float
    score: float


def page(
    title: str,
    tables: Sequence[LabelTable],
    parts: DataParts,
    pictures: int,
    command: str,
    file: str,
    notes: Sequence[str],
    twins: Sequence[tuple[int, int, float]] = (),
) -> bytes:
    """The page: of each table its first `pictures` suspicious rows, and what is known of all of them.

    Ticked rows are saved as `file`; `command` trains with them.
    `twins`: images (one, two, how alike) that are nearly the same, of which as many are shown.
    """
    assert parts.index is not None
    return rendered(
        "labels.html",
        script="labels.js",
        title=title,
        tables=tables,
        names=parts.classes,
        notes=notes,
        rows=[_row(table, i) for table in tables for i in range(min(pictures, table.shown))],
        cut=[f"{pictures} of {t.shown} of {t.split}" for t in tables if t.shown > pictures],
        most_pairs=PAIRS,
        firsts=_firsts,
        unexplained=UNEXPLAINED,
        twins=twins[:pictures],
        split_of={i: role for role in ROLES for i in parts.splits.of(role).tolist()} if twins else {},
        labels=parts.given_labels(),
        thumbnail=partial(thumbnail, parts.index),
        name_of=parts.name_of,
        command=command,
        file=file,
        stored={"file": file, "classes": list(parts.classes), "replaced": list(replaced(parts).items())},
    )


def _firsts(table: LabelTable) -> list[int]:
    """The lengths of the list of which the page says how many are wrong."""
    assert table.estimate is not None
    wrong = table.estimate.wrong.value
    every = sorted({max(1, round(share * wrong)) for share in SHARES})
    return [n for n in every if n <= len(table.estimate.scores)]


def _row(table: LabelTable, i: int) -> Row:
    own = table.samples
    numbers = float(own["other_probability"][i]), float(table.scores[i])
    return Row(table.split, int(own["id"][i]), int(own["given"][i]), int(table.predicted[i]), *numbers)


def result(tables: Sequence[LabelTable]) -> dict[str, Any]:
    """The figures of the page, for --json."""
    return {table.split: _figures(table) for table in tables}


def _figures(table: LabelTable) -> dict[str, Any]:
    figures: dict[str, Any] = {"images": len(table), "flagged": table.flagged, "planted": int(table.planted.sum())}
    if (told := table.estimate) is not None:
        figures |= {"wrong": told.wrong._asdict(), "recall": told.recall._asdict(), "threshold": told.threshold}
        ns = sorted({min(len(told.scores), max(1, round(share * told.wrong.value))) for share in SHARES})
        figures["precision"] = [{"n": n, **told.precision(n)._asdict()} for n in ns]
    return figures

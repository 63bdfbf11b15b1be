"""True labels, where somebody knows them: they judge a report of suspicious labels and are not looked at otherwise."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import binary_auroc

from fastaug.data.build import DataParts
from fastaug.data.label_files import split_line
from fastaug.data.splits import BOM, id_of
from fastaug.errors import DataError
from fastaug.evaluation.label_estimate import Estimate, Interval, Scores


def read_truth(file: Path, parts: DataParts) -> npt.NDArray[np.int64]:
    """The true label [N] of every image: that of its class folder, but where `file` names another.

    Lines `id-or-path<TAB>class` as data.labels has them; DataError for one that does not fit the data.
    """
    assert parts.index is not None
    assert parts.folder_labels is not None
    try:
        lines = file.read_bytes().removeprefix(BOM).split(b"\n")
    except (OSError, ValueError) as error:
        raise DataError(f"--truth: {file} cannot be read ({error}); name a file of true labels") from error
    ids = {path: i for i, path in enumerate(parts.index.paths)}
    classes = {os.fsencode(name): label for label, name in enumerate(parts.classes)}
    truth, seen = parts.folder_labels.copy(), set()
    for number, line in enumerate(lines, start=1):
        name, tab, label = split_line(line, classes)
        if not line.strip() or (line.startswith(b"#") and not (tab and label in classes)):
            continue
        image = id_of(name, ids)
        if image is None or not tab or label not in classes:
            raise DataError(
                f"--truth: {file}, line {number}: {os.fsdecode(line)!r} is not an image of these data, a tab and one "
                "of their classes; it is the truth of other data"
            )
        if image in seen:
            raise DataError(f"--truth: {file}, line {number}: {os.fsdecode(line)!r} names an image twice; remove one")
        seen.add(image)
        truth[image] = classes[label]
    return truth


def judged(scores: Scores, wrong: npt.NDArray[np.bool_], told: Estimate | None) -> dict[str, Any]:
    """What the truth says: `scores` [n] in ascending order, whether each label is `wrong`, what was estimated of them.

    "missed": share of the wrong labels behind the first as many as there are wrong ones, when exactly so many are
    flagged. "first": of the first n, n from half of the estimated number to all of it, the share wrong and whether it
    is in the interval.
    """
    count = int(wrong.sum())
    found: dict[str, Any] = {"wrong": count}
    if 0 < count < len(wrong):
        ranks = torch.from_numpy(np.searchsorted(np.unique(-scores), -scores) / max(len(scores), 1))
        found["score_auroc"] = binary_auroc(ranks, torch.from_numpy(wrong.astype(np.int64))).item()
        found["missed"] = 1 - float(wrong[:count].mean())
    if told is not None:
        number = told.wrong
        found["wrong_in_interval"] = number.low <= count <= number.high
        found["wrong_error"] = number.value / count - 1 if count else None
        first = sorted({max(1, round(number.value * part)) for part in (0.5, 0.75, 0.9, 1)})
        found["first"] = [_first(n, float(wrong[:n].mean()), told.precision(n)) for n in first if n <= len(scores)]
    return found


def _first(n: int, share: float, told: Interval) -> dict[str, Any]:
    return {"n": n, "wrong": share, **told._asdict(), "in_interval": told.low <= share <= told.high}

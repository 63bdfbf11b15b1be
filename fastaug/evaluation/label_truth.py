"""True labels, where somebody knows them: they judge a report of suspicious labels and are not looked at otherwise."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.data.build import DataParts
from fastaug.data.splits import BOM, id_of
from fastaug.errors import DataError


def read_truth(file: Path, parts: DataParts) -> npt.NDArray[np.int64]:
    """The true label [N] of every image: that of its class folder, but where `file` names another.

    Lines `id-or-path<TAB>class` as data.labels has them; DataError for one that does not fit the data.
    """
    assert parts.index is not None
    assert parts.folder_labels is not None
    try:
        lines = file.read_bytes().removeprefix(BOM).split(b"\n")
    except OSError as error:
        raise DataError(f"--truth: {file} cannot be read ({error}); name a file of true labels") from error
    ids = {path: i for i, path in enumerate(parts.index.paths)}
    classes = {os.fsencode(name): label for label, name in enumerate(parts.classes)}
    truth = parts.folder_labels.copy()
    for number, line in enumerate(lines, start=1):
        name, _, label = line.rpartition(b"\t")
        if not line.strip() or (line.startswith(b"#") and label.rstrip() not in classes):
            continue
        image = id_of(name, ids)
        if image is None or label.rstrip() not in classes:
            raise DataError(
                f"--truth: {file}, line {number}: {os.fsdecode(line)!r} is not an image of these data, a tab and one "
                "of their classes; it is the truth of other data"
            )
        truth[image] = classes[label.rstrip()]
    return truth


def judged(table: Any, truth: npt.NDArray[np.int64]) -> dict[str, Any]:
    """What the truth says of a table: wrong labels, how many of the flagged are, and whether the intervals hold."""
    own = table.samples
    known = ~table.planted & ~np.isnan(table.scores)
    wrong = (truth[own["id"]] != own["given"])[known]
    fixed = wrong & (table.predicted[known] == truth[own["id"]][known])
    found = {"wrong": int(wrong.sum()), "found": int(wrong[table.issue[known]].sum()), "repaired": int(fixed.sum())}
    return found

"""The list of suspicious labels of a run: a row for every image, the most suspicious first, with cleanlab's columns."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.data.build import DataParts
from fastaug.data.class_names import some
from fastaug.data.label_files import label_lines
from fastaug.errors import StorageError
from fastaug.evaluation.label_estimate import ALIKE, FEWEST, UNLIKE, Estimate, estimate
from fastaug.evaluation.label_scores import confident, label_scores, predicted, suspected
from fastaug.evaluation.sample_file import SPLITS, Samples
from fastaug.recipe.policy_file import FILE, read_policy_file
from fastaug.recipe.schema import INSTANT_PARTS, Recipe

HEAD = ("id", "path", "split", "given_label", "predicted_label", "label_score", "is_label_issue")
NUMBERS = ("predicted_probability", "probability", "other_probability", "margin", "cross_entropy", "harm")
COUNTS = ("forgotten", "visits")
MOST_PLANTED = 0.5  # of run.plant
UNLIKELY = 0.5  # a score below which another class is the likelier one


@dataclass(frozen=True)
class LabelTable:
    """The rows of one split, the most suspicious first; those without a score, and planted ones, are behind all others.

    `samples`: their statistics; `scores`, `predicted` (classes), `issue`, `planted`: [N] each. `estimate`: what planted
    flips tell of the split, if there are enough. `guard`: the key that kept training from learning what looked wrong.
    """

    split: str
    samples: Samples
    scores: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    issue: npt.NDArray[np.bool_]
    planted: npt.NDArray[np.bool_]
    estimate: Estimate | None
    guard: str = ""

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def flagged(self) -> int:
        """Images whose label looks wrong."""
        return int(self.issue.sum())

    @property
    def shown(self) -> int:
        """Images worth a look, the first of the table: those flagged, and those that an estimate does not explain."""
        unexplained = self.estimate is not None and self.estimate.unexplained
        return max(self.flagged, int((self.scores < UNLIKELY).sum())) if unexplained else self.flagged

    def not_estimated(self) -> str:
        """Why there is no estimate, and the remedy."""
        if self.split != "train":
            return "flips are planted in train alone"
        if self.guard:
            return (
                f"{self.guard} keeps what looks wrong from being learned, right labels too, so that these score as low "
                "as wrong ones; train without it to know, in another run.dir"
            )
        if (share := 1.5 * FEWEST / max(len(self), 1)) > MOST_PLANTED:
            images = "1 image is" if len(self) == 1 else f"{len(self)} images are"
            return f"{images} too few to plant wrong labels among them"
        n = int(self.planted.sum())
        planted = f"{n} planted {'label is' if n == 1 else 'labels are'} too few; " if n else ""
        return f"{planted}train with run.plant={max(share, 0.01):.2g} to know, in another run.dir"

    def pairs(self) -> list[tuple[int, int, int]]:
        """(given, predicted, count) of the suspicious images, the most frequent pair first."""
        found = np.stack([self.samples["given"][self.issue], self.predicted[self.issue]], 1)
        pairs, counts = np.unique(found, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(a), int(b), int(n)) for (a, b), n in zip(pairs[order], counts[order], strict=True)]


def guard_of(recipe: Recipe, run: Path) -> str:
    """The key by which training keeps from learning images that look wrongly labelled; "" where there is none.

    What a run reuses is in its policy file.
    """
    doubts = {"weights", "labels", *INSTANT_PARTS}
    learned, reused = doubts & {*recipe.meta.learn}, set[str]()
    if recipe.meta.reuse is not None and (run / FILE).exists():
        file = read_policy_file(run)
        reused = doubts & {*(piece.kind for piece in file.pieces.values()), *file.tables}
    guards = {
        "augment.trust": recipe.augment.trust > 0,
        "augment.trim": recipe.augment.trim > 0,
        "augment.loss=gce": recipe.augment.loss == "gce",
        f"meta.learn=[{','.join(sorted(learned))}]": bool(learned),
        f"meta.reuse with {', '.join(sorted(reused))}": bool(reused),
    }
    return next((key for key, acts in guards.items() if acts), "")


def label_table(samples: Samples, split: str, recipe: Recipe | None, run: Path) -> LabelTable:
    """The table of a split. With enough planted flips as many images are flagged as labels are estimated to be wrong.

    Without them, or where the training of `recipe` into the folder `run` guarded itself from wrong labels, those that
    look more like another class; of held-out images, those that do so confidently.
    """
    guard = "" if recipe is None else guard_of(recipe, run)
    unlike = UNLIKE if recipe is None or recipe.run.plant_like is None else ALIKE
    own = samples.of(split)
    planted, scores = own["trained"] != own["given"], label_scores(own)
    known = ~planted & ~np.isnan(scores)
    flips = scores[planted & ~np.isnan(scores)]
    told = None
    if split == "train" and not guard:
        given, seed = own["given"][known].astype(np.int64), 0 if recipe is None else recipe.run.seed
        told = estimate(scores[known], flips, labels=given, unlike=unlike, seed=seed)
    order = np.lexsort((own["id"], np.where(known, scores, np.inf)))
    if told is not None:
        issue = np.arange(len(order)) < round(told.wrong.value)
    else:
        issue = (suspected(own) if split == "train" else confident(own))[order]
    own = Samples({name: column[order] for name, column in own.columns.items()})
    known = known[order]
    found = np.where(known, scores[order], np.nan)
    issue &= known
    looks = np.where(issue, own["other"], predicted(own))
    return LabelTable(split, own, found, looks, issue, planted[order], told, guard)


def check_fits(samples: Samples, parts: DataParts, run: str) -> None:
    """StorageError unless the statistics are of these images and classes."""
    assert parts.index is not None
    classes = len(parts.classes)
    for split in SPLITS:
        own, ids = samples.of(split), parts.splits.of(split)
        strange = np.setdiff1d(own["id"], ids)
        if len(strange) or (split == "train" and len(own) != len(ids)):
            raise StorageError(
                f"{run}: its statistics are of {len(own)} {split} images, and there are now {len(ids)}, or others; put "
                "the data back as they were, or train again"
            )
    if not (samples.of("train")["visits"] > 0).any():
        raise StorageError(
            f"{run}: no training image ever counted, as where a run had ended before statistics were kept; train anew, "
            "in another run.dir"
        )
    for name, least in (("given", 0), ("trained", 0), ("other", -1)):
        column = samples[name]
        if len(column) and (column.min() < least or column.max() >= classes):
            raise StorageError(
                f"{run}: samples.npz has a {name} class {column.min()} to {column.max()}, and there are {classes} "
                "classes; run the training command again"
            )
    given = parts.given_labels()
    if len(samples) and (samples["id"].max() >= len(given) or (given[samples["id"]] != samples["given"]).any()):
        raise StorageError(f"{run}: the labels of the data are not those it was trained on; train again")


def cautions(tables: list[LabelTable], parts: DataParts) -> list[str]:
    """Sentences about what the tables cannot tell, and what the page cannot write; none where all is well."""
    found, train = [], tables[0].samples
    counts = np.bincount(train["given"], minlength=len(parts.classes))
    if names := [parts.classes[label] for label in np.flatnonzero(counts == 1)]:
        found.append(
            f"Of a class with a single training image nothing can be said: {some(names)}; add images, or look at them "
            "yourself."
        )
    doubtful = () if tables[0].estimate is None else tables[0].estimate.unlearned.labels
    if names := [parts.classes[label] for label in doubtful if counts[label] > 1]:
        found.append(
            f"Most images of {some(names)} look like another class. How many of those are right cannot be told, and "
            "the intervals allow for any share: add images, train longer, or look at them yourself."
        )
    for table in tables:
        if silent := len(parts.splits.of(table.split)) - int((table.samples["visits"] > 0).sum()):
            images = f"1 image of {table.split} has" if silent == 1 else f"{silent} images of {table.split} have"
            found.append(f"{images} no statistics: not readable, or never counted.")
    if names := [name for name in parts.classes if _unwritable(name)]:
        found.append(f"A browser cannot write the class {some(names)} into a file of labels; rename the folder.")
    return found


def replaced(parts: DataParts) -> dict[int, str]:
    """The labels that data.labels has replaced already, by image: a new file has to say them again."""
    if parts.folder_labels is None:
        return {}
    given = parts.given_labels()
    return {int(i): parts.classes[given[i]] for i in np.flatnonzero(given != parts.folder_labels)}


def corrected(table: LabelTable, parts: DataParts, below: float) -> tuple[bytes, int]:
    """A file for data.labels, and of how many images: those that score less than `below` get the class they look like.

    The only image of its class keeps its label, as nothing can be said of it. DataError for a class whose name no such
    file can hold.
    """
    given = table.samples["given"].astype(np.int64)
    wrong = (table.scores < below) & (np.bincount(given)[given] > 1)
    new = zip(table.samples["id"][wrong].tolist(), table.predicted[wrong].tolist(), strict=True)
    labels = replaced(parts) | {i: parts.classes[label] for i, label in new}
    return label_lines(np.array(list(labels), dtype=np.int64), list(labels.values())), int(wrong.sum())


def _unwritable(name: str) -> bool:
    return any(c in "\t\r\n" or 0xD800 <= ord(c) < 0xE000 for c in name)


def csv_text(tables: list[LabelTable], parts: DataParts) -> bytes:
    """labels.csv: all images of the tables, in UTF-8; bytes of a name that are none stand as escapes."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    numbers = [name for name in NUMBERS if name != "harm" or all("harm" in table.samples.columns for table in tables)]
    writer.writerow([*HEAD, *numbers, *COUNTS, "planted"])
    for table in tables:
        writer.writerows(zip(*_columns(table, parts, numbers), strict=True))
    return out.getvalue().encode(errors="backslashreplace")


def _columns(table: LabelTable, parts: DataParts, numbers: list[str]) -> list[list[Any]]:
    own, classes = table.samples, np.array([*parts.classes, ""], dtype=object)  # -1 is the last
    ids = own["id"].tolist()
    seen = np.where(table.predicted == own["trained"], own["probability"], own["other_probability"])
    values = {**own.columns, "predicted_probability": np.where(table.predicted >= 0, seen, np.nan)}
    return [
        ids,
        [parts.name_of(i) for i in ids],
        [table.split] * len(ids),
        classes[own["given"]].tolist(),
        classes[table.predicted].tolist(),
        _text(table.scores),
        table.issue.tolist(),
        *(_text(values[name]) for name in numbers),
        *(own[name].tolist() for name in COUNTS),
        table.planted.tolist(),
    ]


def _text(values: npt.NDArray[Any]) -> list[str]:
    """Numbers in six digits, nothing for those that are not known."""
    return ["" if value != value else f"{value:.6g}" for value in values.tolist()]

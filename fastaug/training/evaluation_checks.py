"""Checks beside the figures of an evaluation: calibration, occlusion, out-of-distribution, corruptions, label maps.

Each is begun before the network sees the split, which is when what cannot be done is refused, hears what the network
says of the split, and then tells its figures. Preprocessing and arithmetic are those of the evaluation.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import nn

from fastaug.augment.pipeline import BatchAugment
from fastaug.console import warnings_as_lines
from fastaug.data.build import DataParts, find_index, find_root
from fastaug.data.channel_files import reads_channels
from fastaug.data.image_files import colour_of
from fastaug.data.index import Folder, Index
from fastaug.data.listing import Listing
from fastaug.data.loose_files import find_images, index_of
from fastaug.data.shards.layout import is_shard_folder
from fastaug.data.splits import ROLES, Splits
from fastaug.distributed import local_main_process_first
from fastaug.errors import DataError, RecipeError
from fastaug.evaluation.changed_images import Change, ChangesByEpoch
from fastaug.evaluation.corruptions import Corruption, checked_names, checked_severities, error_table
from fastaug.evaluation.corruptions.published import SEVERITIES
from fastaug.evaluation.evaluate import Evaluator, Listener
from fastaug.evaluation.label_map import MappedAccuracy, read_label_map
from fastaug.evaluation.occlusion import WAYS, Seen, occlusions, point
from fastaug.evaluation.out_of_distribution import KeptScores, detection
from fastaug.evaluation.temperature import Calibration, KeptLogits, fit
from fastaug.recipe.schema import Recipe
from fastaug.seeding import Key, Stream, permuted
from fastaug.training.build_data import build_listing, evaluation_loader

Ids = npt.NDArray[np.int64]
Figures = dict[str, Any]
MOST_POINTS = 100  # of an occlusion curve


@dataclass(frozen=True)
class Checks:
    """Which checks are wanted; none by default.

    `temperature`: what T is fitted on, "select", "meta", or a share of the split that is evaluated, as "0.2", which the
    calibration then leaves out. `occlusion`: points of each curve. `ood`: the root of the other set, in any form of
    data.root, or a folder of images. `corruptions`: names, ("all",) for all 15, at `severities`. `label_map`: a file.
    """

    temperature: str | None = None
    occlusion: int = 0
    ood: str | None = None
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = SEVERITIES
    label_map: Path | None = None


NO_CHECKS = Checks()


@dataclass
class Scene:
    """What is evaluated: a network on a split of data; and the damaged images met on the way, {name: reason}."""

    recipe: Recipe
    accelerator: Accelerator
    parts: DataParts
    network: nn.Module
    augment: BatchAugment
    split: str
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> Ids:
        """The images of the split."""
        return self.parts.splits.of(self.split)

    @property
    def side(self) -> int:
        """Pixels a side of evaluated images."""
        return self.recipe.eval.img_size or self.recipe.data.img_size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.accelerator.device

    def only(self, ids: Ids) -> Splits:
        """Splits in which the split that is evaluated has the images `ids`, and the others none."""
        found = {role: ids if role == self.split else ids[:0] for role in ROLES}
        return Splits(found["train"], found["meta"], found["select"], found["test"])

    def hear(self, listeners: Sequence[Listener], parts: DataParts | None = None) -> None:
        """Lets `listeners` hear of other images: of the split as `parts` has it."""
        parts = parts or self.parts
        loader = evaluation_loader(self.recipe, self.accelerator, parts, parts.splits.of(self.split))
        Evaluator(self.recipe, self.accelerator, parts, loader, self.augment).run(
            self.network, self.split, listeners=listeners
        )
        self.skipped |= {parts.name_of(sample): reason for sample, reason in loader.skipped.items()}

    def under(self, changes: Sequence[Change], listeners: Sequence[Sequence[Listener]]) -> Iterator[Figures]:
        """Figures of the split under each change, of which the listeners of the same number hear."""
        transform = ChangesByEpoch(changes)
        loader = evaluation_loader(self.recipe, self.accelerator, self.parts, self.ids, transform)
        evaluator = Evaluator(self.recipe, self.accelerator, self.parts, loader, self.augment)
        for number, hearing in enumerate(listeners):
            yield evaluator.run(self.network, self.split, listeners=hearing, epoch=number)


class Check(Protocol):
    """A check that was begun."""

    @property
    def listeners(self) -> Sequence[Listener]:
        """Those that are to hear of the split."""

    def figures(self, clean: Figures) -> Figures:
        """Its figures, by the name of the check; `clean` are those of the split. Every process must call this."""


def begin(checks: Checks, scene: Scene) -> list[Check]:
    """The checks that are wanted, after all that can be refused is; the temperature is fitted last.

    RecipeError or DataError, before the network is asked for anything, for checks that cannot be done.
    """
    wanted = replace(checks, severities=SEVERITIES) != NO_CHECKS
    if wanted and scene.parts.multi_hot(torch.device("cpu")) is not None:
        raise RecipeError(["data.multi_label: calibration and robustness are of images of one class; leave them out"])
    if not 0 <= checks.occlusion <= MOST_POINTS:
        raise RecipeError([f"occlusion: {checks.occlusion} is no number of points from 1 to {MOST_POINTS}"])
    begun: list[Check] = []
    if checks.occlusion:
        begun.append(OcclusionCheck(scene, checks.occlusion))
    if checks.corruptions and reads_channels(scene.recipe.data.channels):
        text = f"corruptions: are of images of colours, and data.channels = {scene.recipe.data.channels}"
        raise RecipeError([f"{text}; leave them out"])
    if checks.corruptions:
        names, severities = checked_names(checks.corruptions), checked_severities(checks.severities)
        begun.append(CorruptionCheck(scene, [Corruption(name, s, scene.side) for name in names for s in severities]))
    if checks.label_map is not None:
        begun.append(LabelMapCheck(scene, checks.label_map))
    if checks.ood is not None:
        begun.append(OutOfDistributionCheck(scene, checks.ood))
    if checks.temperature is not None:
        begun.append(TemperatureCheck(scene, checks.temperature))
    return begun


class TemperatureCheck:
    """Temperature scaling: T, fitted on other images than those that are reported on, and figures before and after.

    Where no T is best, T and the figures after it are None, and `not_fitted` says why: other checks do not hang on it.
    """

    def __init__(self, scene: Scene, wanted: str) -> None:
        self.scene, self.wanted = scene, wanted
        fitted_on, left_out = images_to_fit(scene, wanted)
        kept = KeptLogits()
        scene.hear([kept], replace(scene.parts, splits=scene.only(fitted_on)))
        logits, labels = kept.of_all(scene.accelerator, len(scene.parts.classes))
        self.fitted_on, self.not_fitted = len(labels), None
        self.temperature: float | None = None
        try:
            self.temperature = fit(logits, labels)
        except DataError as error:
            self.not_fitted = str(error)
        temperatures = (1.0,) if self.temperature is None else (1.0, self.temperature)
        without, bins = torch.from_numpy(left_out), scene.recipe.eval.ece_bins
        self.calibration = Calibration(temperatures, bins, without, scene.device)
        self.listeners = [self.calibration]

    def figures(self, clean: Figures) -> Figures:  # noqa: ARG002
        """T and the calibration of the split without and with it."""
        before, *after = self.calibration.figures(self.scene.accelerator)
        found = {"temperature": self.temperature, "not_fitted": self.not_fitted}
        found |= {"fitted_on": self.wanted, "fitted_on_images": self.fitted_on}
        found["images"] = sum(row["images"] for row in before["reliability"])
        return {"calibration": {**found, "before": before, "after": after[0] if after else None}}


def images_to_fit(scene: Scene, wanted: str) -> tuple[Ids, Ids]:
    """The images to fit T on, and those of the split that are then not reported on.

    RecipeError where there are none, or they are the split itself.
    """
    splits, ids = scene.parts.splits, scene.ids
    if wanted not in ("select", "meta"):
        share = _share(wanted)
        order = permuted(Key(scene.recipe.run.seed, 0, Stream.TEMPERATURE), ids)
        chosen = np.sort(order[: round(share * len(ids))])
        if not 0 < len(chosen) < len(ids):
            raise RecipeError([f"temperature: a share of {wanted} of {len(ids)} images leaves none; name another"])
        return chosen, chosen
    chosen = splits.of(wanted)
    if not len(chosen):
        key = f"data.{wanted}_fraction"
        others = [name for name in ("select", "meta") if len(splits.of(name)) and name != scene.split]
        instead = f"fit it on {' or '.join(others)}, or" if others else "train with it set, or"
        raise RecipeError(
            [f"temperature: there is no {wanted} split ({key}=0); {instead} on a share of {scene.split}, say 0.2"]
        )
    if np.intersect1d(chosen, ids).size:
        raise RecipeError(
            [f"temperature: {wanted} has images of {scene.split}, which is reported; name a share of it, say 0.2"]
        )
    return chosen, ids[:0]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise RecipeError([f"temperature: {text!r} is neither select nor meta, nor a share between 0 and 1"])
    return value


class OcclusionCheck:
    """Accuracy and confidence against visibility."""

    listeners: Sequence[Listener] = ()

    def __init__(self, scene: Scene, points: int) -> None:
        self.scene = scene
        self.changes = occlusions(points, scene.side, scene.recipe.data.mean)

    def figures(self, clean: Figures) -> Figures:  # noqa: ARG002
        """The points of the curves, from the most visible to the least, by the way of occlusion."""
        scene = self.scene
        seen = [Seen(change, scene.recipe.run.seed, scene.device) for change in self.changes]
        curves: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for one, figures in zip(seen, scene.under(self.changes, [[one] for one in seen]), strict=True):
            curves[one.occlusion.way].append(point(figures, one.means(scene.accelerator)))
        return {"occlusion": curves}


class CorruptionCheck:
    """Errors under common corruptions."""

    listeners: Sequence[Listener] = ()

    def __init__(self, scene: Scene, changes: Sequence[Corruption]) -> None:
        self.scene, self.changes = scene, changes

    def figures(self, clean: Figures) -> Figures:
        """The table of errors and their means."""
        errors = {}
        for change, figures in zip(self.changes, self.scene.under(self.changes, [[]] * len(self.changes)), strict=True):
            errors[change] = 1 - figures["top1"]
        return {"corruptions": error_table(errors, 1 - clean["top1"], len(self.scene.parts.classes))}


class LabelMapCheck:
    """Accuracy by a label map."""

    def __init__(self, scene: Scene, file: Path) -> None:
        if scene.parts.index is None:
            raise RecipeError(["label map: synthetic images have no names; evaluate files"])
        self.scene, self.file = scene, file
        self.accuracy = MappedAccuracy(read_label_map(file, scene.parts, scene.ids), scene.device)
        self.listeners = [self.accuracy]

    def figures(self, clean: Figures) -> Figures:  # noqa: ARG002
        """The figures by the map."""
        return {"label_map": {"file": str(self.file), **self.accuracy.figures(self.scene.accelerator)}}


class OutOfDistributionCheck:
    """Detection of images of another set."""

    def __init__(self, scene: Scene, root: str) -> None:
        self.scene, self.root, self.inside = scene, root, KeptScores()
        self.parts = other_set(scene, root)
        self.listeners = [self.inside]

    def figures(self, clean: Figures) -> Figures:  # noqa: ARG002
        """AUROC and FPR at 95 % TPR by each score."""
        outside, accelerator = KeptScores(), self.scene.accelerator
        try:
            self.scene.hear([outside], self.parts)
        except DataError as error:
            raise DataError(f"ood: {self.root}: {error}") from error
        return {"ood": {"root": self.root, **detection(self.inside.of_all(accelerator), outside.of_all(accelerator))}}


def other_set(scene: Scene, root: str) -> DataParts:
    """The images of another set, its test images where it has any, as the split that is evaluated; labels are all 0.

    DataError where it has no images.
    """
    with warnings_as_lines(scene.accelerator.is_local_main_process), local_main_process_first(scene.accelerator):
        try:
            index = _index_of(root, scene)
        except DataError as error:
            raise DataError(f"ood: {root}: {error}") from error
    tested = np.flatnonzero(index.folders == Folder.TEST)
    ids = (tested if len(tested) else np.arange(len(index))).astype(np.int64)
    index = replace(index, classes=scene.parts.classes, labels=np.zeros(len(index), np.int64), multi_hot=None)
    return DataParts(scene.parts.classes, scene.only(ids), index)


def _index_of(root: str, scene: Scene) -> Index:
    """The index of a set, or of a folder with images directly in it."""
    data, main = scene.recipe.data, scene.accelerator.is_main_process
    channels = build_listing(scene.recipe).channels
    folder = find_root(root, main, verify=data.verify)
    if isinstance(folder, Path) and not is_shard_folder(folder):
        paths = find_images([folder], channels).paths  # which refuses folders without an image
        if any(os.path.dirname(path) == os.fsencode(folder.absolute()) for path in paths):
            threads = data.threads or len(os.sched_getaffinity(0))
            return index_of(paths, scene.parts.classes, data.exif, threads, channels)
    return find_index(folder, data.exif, main, Listing(channels=channels), colour_of(data.background))

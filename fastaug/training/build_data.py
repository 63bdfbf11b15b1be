"""Builds the data of a recipe's run: index, splits, and the loaders of training, evaluation and the meta step."""

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from fastaug.augment.fixed.base import Policy
from fastaug.augment.fixed.build import build_policy
from fastaug.console import warnings_as_lines
from fastaug.data.build import DataParts, build_loader, find_index, find_root, synthetic_parts
from fastaug.data.channel_files import reads_channels
from fastaug.data.image_files import colour_of
from fastaug.data.index import Index
from fastaug.data.label_files import with_labels
from fastaug.data.listing import Listing
from fastaug.data.loaders.base import Crop, HostTransform, Loader, Loading
from fastaug.data.loaders.resizing import ResizingLoader
from fastaug.data.packed.records import Keys
from fastaug.data.planting import planted_labels
from fastaug.data.sampler import Ids, Order
from fastaug.data.splits import ROLES, make_splits
from fastaug.distributed import local_main_process_first, on_every_process
from fastaug.errors import DataError, RecipeError, StorageError
from fastaug.evaluation.label_scores import confusion
from fastaug.evaluation.sample_file import read_samples
from fastaug.recipe.schema import Recipe


class Place(Protocol):
    """Where loaders put their batches: the device of this process, and how many processes there are. An Accelerator."""

    @property
    def device(self) -> torch.device:
        """The device that this process's batches are made for."""

    @property
    def num_processes(self) -> int:
        """Processes that share a machine's cores, unless a launcher says how many of them do."""


def find_data(recipe: Recipe, accelerator: Accelerator, *, bars: bool = True) -> DataParts:
    """Index and splits; one process of each machine makes them first, the others there read its cache.

    With `bars` the main process shows how far the reading is.
    Where learned parts only act (meta.frozen, meta.reuse), the meta split is trained on.

    DataError when two processes do not see the same images: a machine's copy of the set may be another one.
    """
    data = recipe.data
    if data.loader == "synthetic":
        return synthetic_parts(data.synthetic_images, data.synthetic_classes, tested=recipe.eval.batch_size)
    main = accelerator.is_main_process and bars
    with warnings_as_lines(accelerator.is_local_main_process):  # each host reads files and a cache of its own
        with local_main_process_first(accelerator):
            index = read_index(recipe, progress=main)
        parts = planted_parts(recipe, split_index(recipe, index))
    check_same_data(recipe, accelerator, parts)
    return parts.with_meta() if recipe.meta.acts_frozen else parts


def read_index(recipe: Recipe, *, progress: bool) -> Index:
    """The index of the recipe's images; sets in other forms are written as a folder first."""
    data, listing = recipe.data, build_listing(recipe)
    keys = Keys(data.input_key, data.target_key)
    root = find_root(data.root, progress, listing.table, keys=keys, verify=data.verify)
    return find_index(root, data.exif, progress, listing, colour_of(data.background))


def split_index(recipe: Recipe, index: Index, *, needs_test: bool = True) -> DataParts:
    """The images of an index in the recipe's splits, with the labels that data.labels replaces.

    DataError where no image is trained on or, with `needs_test`, none is tested.
    """
    data = recipe.data
    splits = make_splits(
        index,
        seed=data.split_seed,
        meta=data.meta_fraction,
        select=data.select_fraction,
        test=data.test_fraction,
        files=None if data.splits is None else Path(data.splits).expanduser(),
        needs_test=needs_test,
    )
    given = index.labels
    if data.labels is not None:
        index = with_labels(index, splits, Path(data.labels).expanduser())
    return DataParts(index.classes, splits, index, given)


def build_listing(recipe: Recipe) -> Listing:
    """How the recipe has images listed: by folders, or by a table."""
    data = recipe.data
    table, class_map = (None if file is None else Path(file) for file in (data.table, data.class_map))
    channels = data.channels if reads_channels(data.channels) else Listing.channels
    return Listing(table, data.class_level, class_map, data.multi_label, data.label_separator, channels)


def planted_parts(recipe: Recipe, parts: DataParts) -> DataParts:
    """`parts` with the labels that run.plant flips; RecipeError where what run.plant_like names cannot be used."""
    if not recipe.run.plant:
        return parts
    assert parts.index is not None
    like, classes = recipe.run.plant_like, len(parts.classes)
    found = None if like is None else confusion_of(Path(like), parts.classes)
    labels, planted = planted_labels(
        parts.index.labels,
        parts.splits.train,
        classes,
        share=recipe.run.plant,
        seed=recipe.run.seed,
        confusion=found,
    )
    return replace(parts, index=replace(parts.index, labels=labels), planted=planted)


def confusion_of(run: Path, classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """How often images of class a look labelled b in the run folder `run`: [C, C], not 0 alone; RecipeError else."""
    try:
        samples = read_samples(run).of("train")
        names = json.loads((run / "classes.json").read_bytes())["classes"]
    except (StorageError, OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError([f"run.plant_like: {error}"]) from error
    if names != list(classes):
        raise RecipeError([f"run.plant_like: {run} was trained on other classes; name a run on these images"])
    found = confusion(samples, len(classes))
    if not found.any():
        raise RecipeError([f"run.plant_like: {run} found no label that looks wrong; leave it out"])
    return found


def check_same_data(recipe: Recipe, accelerator: Accelerator, parts: DataParts) -> None:
    """DataError unless every process has the same images, splits and sizes; all processes raise it."""
    assert parts.index is not None
    digest = hashlib.sha256(parts.fingerprint(learns=True).encode())
    for column in (parts.index.heights, parts.index.widths, parts.index.status):
        digest.update(column.tobytes())
    for role in ROLES:
        digest.update(parts.splits.of(role).tobytes())
    seen = f"{len(parts.index)} images, {digest.hexdigest()[:12]}, on {socket.gethostname()}"
    found = on_every_process(accelerator, seen)
    for rank, other in enumerate(found):
        if other.partition(" on ")[0] != found[0].partition(" on ")[0]:
            raise DataError(
                f"data.root: {recipe.data.root} is not the same set for all processes: process {rank} has {other}, "
                f"process 0 {found[0]}; copy it again, with the sizes of its images, or use one that all can read"
            )


def training_loader(recipe: Recipe, place: Place, parts: DataParts, order: Order) -> Loader:
    """The loader of the training split; the recipe's fixed policy is applied in its threads."""
    if recipe.train.resize:
        return ResizingLoader(lambda side: _training_loader(_at_side(recipe, side), place, parts, order), recipe.side)
    return _training_loader(recipe, place, parts, order)


def _at_side(recipe: Recipe, side: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, img_size=side))


def _training_loader(recipe: Recipe, place: Place, parts: DataParts, order: Order) -> Loader:
    crop = build_crop(recipe, recipe.data.crop, recipe.data.img_size)
    loading = build_loading(recipe, place, order.largest_piece(), fixed_policy(recipe))
    loading = replace(loading, first_epoch=recipe.augment.start_epochs, spare=order.views > 1)
    return build_loader(parts, parts.splits.train, crop, loading, resident=recipe.data.loader == "resident")


def evaluation_loader(
    recipe: Recipe, place: Place, parts: DataParts, ids: Ids, transform: HostTransform | None = None
) -> Loader:
    """A loader of the images `ids` as they are evaluated, or under `transform`, once they are cut out."""
    crop = build_crop(recipe, evaluated(recipe), recipe.eval.img_size or recipe.data.img_size)
    loading = build_loading(recipe, place, recipe.eval.batch_size, transform)
    return build_loader(parts, ids, crop, loading, resident=recipe.data.loader == "resident")


def meta_loader(recipe: Recipe, place: Place, parts: DataParts) -> Loader:
    """The loader of the meta split: cut as evaluation images are, at the size that is trained on."""
    crop = build_crop(recipe, evaluated(recipe), recipe.data.img_size)
    loading = build_loading(recipe, place, recipe.meta.batch_size)
    return build_loader(parts, parts.splits.meta, crop, loading, resident=recipe.data.loader == "resident")


def fixed_policy(recipe: Recipe) -> Policy | None:
    """The policy that augment.aa and augment.color_jitter name; None if there is nothing to do."""
    augment, data = recipe.augment, recipe.data
    return build_policy(augment.aa, img_size=data.img_size, mean=data.mean, color_jitter=augment.color_jitter)


def evaluated(recipe: Recipe) -> str:
    """The kind of crop of images that are not trained on: whole where those that are trained on are."""
    return "whole" if recipe.data.crop == "whole" else "center"


def build_crop(recipe: Recipe, kind: str, side: int) -> Crop:
    """The crop windows that a loader cuts, from the recipe."""
    data = recipe.data
    return Crop(
        kind=kind,
        side=side,
        seed=recipe.run.seed,
        scale=data.scale,
        ratio=data.ratio,
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        exif=data.exif,
        background=colour_of(data.background),
        channels=data.channels,
    )


def build_loading(recipe: Recipe, place: Place, largest_batch: int, transform: HostTransform | None = None) -> Loading:
    """Threads, prefetch and host transform of a loader: data.threads, else this process's share of the cores."""
    cores = len(os.sched_getaffinity(0))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", place.num_processes))
    return Loading(
        device=place.device,
        largest_batch=largest_batch,
        threads=recipe.data.threads or max(1, cores // local),
        prefetch=recipe.data.prefetch,
        transform=transform,
    )

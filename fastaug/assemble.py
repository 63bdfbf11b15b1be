"""From a recipe to everything a run needs, built once, in the order in which it can fail cheapest."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from fastaug.arrays import KINDS, materialize_arrays
from fastaug.augment.batch import BatchAugment
from fastaug.augment.hidden import HiddenCutMix
from fastaug.console import Console
from fastaug.data import Crop, DaliLoader, Loader, ResidentLoader, SyntheticLoader
from fastaug.embedded import materialize
from fastaug.index import Index, load_index
from fastaug.metrics import TrainMeter
from fastaug.model import build_ema, build_model
from fastaug.objective import Objective, build_objective
from fastaug.optim import SetRate, build_optimizer, build_schedule
from fastaug.order import Order
from fastaug.recipe import Recipe
from fastaug.run_folder import RunFolder
from fastaug.splits import Splits, make_splits

# What data.root may begin with, before a colon: a maker of class folders.
SOURCES: dict[str, Callable[..., Path]] = {"embedded": materialize}
SOURCES |= {kind: partial(materialize_arrays, kind) for kind in KINDS}


@dataclass
class Progress:
    """How far a run is; all of it is in every checkpoint."""

    step: int = 0  # updates done
    images_seen: int = 0
    train_seconds: float = 0.0
    best_step: int | None = None
    best_top1: float | None = None
    skipped: dict[int, str] = field(default_factory=dict)  # damaged images met by any process


@dataclass
class Trainer:
    """Everything that one process of a run works with."""

    recipe: Recipe
    accelerator: Accelerator
    folder: RunFolder
    console: Console
    data: "DataParts"
    order: Order
    augment: BatchAugment
    objective: Objective
    network: nn.Module  # the plain module, for weights and evaluation
    model: nn.Module  # the same behind Accelerate: precision and processes
    ema: ModelEmaV3 | None
    optimizer: Any  # Accelerate's, around timm's
    set_rate: SetRate
    meter: TrainMeter
    progress: Progress = field(default_factory=Progress)

    @property
    def last_step(self) -> int:
        return self.recipe.train.epochs * self.order.steps_per_epoch


@dataclass
class DataParts:
    """Classes, splits and the two loaders."""

    classes: tuple[str, ...]
    splits: Splits
    train: Loader
    evaluation: Loader
    index: Index | None  # None: synthetic

    def held_out(self) -> list[str]:
        """The splits that can be evaluated."""
        return [name for name in ("select", "test") if len(self.splits.of(name))]

    def name_of(self, sample: int) -> str:
        """The path of an image, fit to print."""
        return "" if self.index is None else os.fsdecode(self.index.path(sample)).encode(errors="replace").decode()


def find_data(recipe: Recipe, accelerator: Accelerator) -> tuple[Index | None, Splits]:
    """Index and splits; the main process makes them first, the others read its cache."""
    data = recipe.data
    if data.loader == "synthetic":
        ids = np.arange(data.synthetic_images, dtype=np.int64)
        tested = ids[: min(len(ids), recipe.eval.batch_size)]
        return None, Splits(train=ids, meta=ids[:0], select=ids[:0], test=tested)
    with accelerator.main_process_first():
        main = accelerator.is_main_process
        kind, _, source = data.root.partition(":")
        root = SOURCES[kind](source, progress=main) if source and kind in SOURCES else Path(data.root)
        index = load_index(root, exif=data.exif, progress=main)
    splits = make_splits(
        index,
        seed=data.split_seed,
        meta=data.meta_fraction,
        select=data.select_fraction,
        test=data.test_fraction,
        files=None if data.splits is None else Path(data.splits),
    )
    return index, splits


def _threads(recipe: Recipe, accelerator: Accelerator) -> int:
    cores = len(os.sched_getaffinity(0))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return recipe.data.threads or max(1, cores // local)


def build_data(
    recipe: Recipe, accelerator: Accelerator, index: Index | None, splits: Splits, order: Order
) -> DataParts:
    """The loaders of one process."""
    data, seed, device = recipe.data, recipe.run.seed, accelerator.device
    tested = recipe.eval.img_size or data.img_size
    if index is None:
        loaders = [SyntheticLoader(data, side, seed, device) for side in (data.img_size, tested)]
        return DataParts(tuple(map(str, range(data.synthetic_classes))), splits, loaders[0], loaders[1], None)
    shared: dict[str, Any] = {"threads": _threads(recipe, accelerator), "device": device}
    evaluated = "whole" if data.crop == "whole" else "center"  # images trained on whole are evaluated whole
    crops = {
        "train": Crop(data.crop, data.img_size, data, seed),
        "evaluation": Crop(evaluated, tested, data, seed),
    }
    largest = {"train": order.largest_piece(), "evaluation": recipe.eval.batch_size}
    dali = {part: DaliLoader(index, data, crops[part], largest_batch=largest[part], **shared) for part in crops}
    if data.loader == "dali":
        return DataParts(index.classes, splits, dali["train"], dali["evaluation"], index)
    held = np.concatenate([splits.select, splits.test])
    resident = {
        "train": ResidentLoader(dali["train"], splits.train),
        "evaluation": ResidentLoader(dali["evaluation"], held),
    }
    return DataParts(index.classes, splits, resident["train"], resident["evaluation"], index)


def build_order(recipe: Recipe, accelerator: Accelerator, splits: Splits) -> Order:
    """The training order as this process sees it."""
    return Order(
        ids=splits.train,
        seed=recipe.run.seed,
        batch_size=recipe.train.batch_size,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
        accumulate=recipe.train.accumulate,
        group=recipe.augment.mix_group or 1,
        drop_last=recipe.train.drop_last,
        repeats=recipe.augment.repeats,
    )


def assemble(recipe: Recipe, accelerator: Accelerator, folder: RunFolder, console: Console) -> Trainer:
    """A Trainer at step 0."""
    index, splits = find_data(recipe, accelerator)
    order = build_order(recipe, accelerator, splits)
    data = build_data(recipe, accelerator, index, splits, order)
    torch.manual_seed(recipe.run.seed)  # initial weights
    outputs = len(data.classes) + recipe.augment.other_class
    network = build_model(recipe.model, outputs).to(accelerator.device)
    mixes_hidden = recipe.augment.mix_layer is not None
    hidden = HiddenCutMix(network, recipe.augment, recipe.data.img_size) if mixes_hidden else None
    optimizer = build_optimizer(recipe.optim, network)
    set_rate = build_schedule(
        recipe.optim, optimizer, epochs=recipe.train.epochs, updates_per_epoch=order.steps_per_epoch
    )
    ema = build_ema(recipe.model, network)
    if recipe.model.compile:
        network.compile()
    model, prepared = accelerator.prepare(network, optimizer)
    return Trainer(
        recipe=recipe,
        accelerator=accelerator,
        folder=folder,
        console=console,
        data=data,
        order=order,
        augment=BatchAugment(recipe, len(data.classes), hidden),
        objective=build_objective(recipe.augment),
        network=network,
        model=model,
        ema=ema,
        optimizer=prepared,
        set_rate=set_rate,
        meter=TrainMeter(accelerator),
    )

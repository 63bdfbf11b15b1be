"""From a recipe to everything a run needs, built once, in the order in which it can fail cheapest."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from fastaug.augment.batch import BatchAugment
from fastaug.augment.hidden import HiddenCutMix
from fastaug.console import Console
from fastaug.data import Loader
from fastaug.errors import DataError, RecipeError
from fastaug.evaluation import Evaluator, held_out_ids
from fastaug.loading import DataParts, evaluation_loader, find_data, meta_loader, training_loader
from fastaug.meta import MetaStep, over_processes
from fastaug.meta_parameters import MetaParameters
from fastaug.metrics import TrainMeter
from fastaug.model import build_ema, build_model
from fastaug.objective import Objective, build_objective, sample_losses
from fastaug.optim import SetRate, build_learned_schedule, build_optimizer, build_schedule
from fastaug.order import Order
from fastaug.recipe import Recipe
from fastaug.run_folder import RunFolder
from fastaug.samples import SampleLosses
from fastaug.splits import Splits
from fastaug.validation_gradient import ValidationGradient, meta_requests


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
    parts: DataParts
    order: Order
    loader: Loader
    augment: BatchAugment
    objective: Objective
    network: nn.Module  # the plain module, for weights and evaluation
    model: nn.Module  # the same behind Accelerate: precision and processes
    ema: ModelEmaV3 | None
    optimizer: Any  # Accelerate's, around timm's
    set_rate: SetRate
    meter: TrainMeter
    evaluator: Evaluator
    sample_losses: SampleLosses | None  # None unless run.log_losses
    meta: MetaStep | None  # None where the recipe learns nothing by it
    progress: Progress = field(default_factory=Progress)

    @property
    def last_step(self) -> int:
        return self.recipe.train.epochs * self.order.steps_per_epoch

    def weights(self, kind: str) -> nn.Module:
        """The network with its "raw" or its "ema" weights."""
        if kind == "raw":
            return self.network
        assert self.ema is not None
        return self.ema.module


def build_order(recipe: Recipe, accelerator: Accelerator, splits: Splits) -> Order:
    """The training order as this process sees it; DataError when the batch does not suit the split."""
    order = Order(
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
    order.check()
    return order


def build_network(recipe: Recipe, classes: int, accelerator: Accelerator) -> nn.Module:
    """The network of a recipe with its initial weights, on the device."""
    torch.manual_seed(recipe.run.seed)
    return build_model(recipe.model, classes + recipe.augment.other_class).to(accelerator.device)


def build_learned(
    recipe: Recipe, accelerator: Accelerator, parts: DataParts, optimizer: torch.optim.Optimizer
) -> MetaParameters | None:
    """What the meta step learns, if it learns anything; DataError without a meta split that is large enough."""
    if not recipe.meta.learn:
        return None
    found = len(parts.splits.meta)
    if found < recipe.meta.batch_size:
        raise DataError(
            f"meta.learn: {recipe.meta.learn} needs a meta split of meta.batch_size = {recipe.meta.batch_size} images "
            f"or more, found {found}; set data.meta_fraction, or add a meta/ folder or list"
        )
    assert parts.index is not None
    momentum = optimizer.param_groups[0].get("momentum")
    return MetaParameters(recipe, len(parts.index.labels), momentum, accelerator.device)


def build_meta(
    recipe: Recipe,
    accelerator: Accelerator,
    parts: DataParts,
    order: Order,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    augment: BatchAugment,
    console: Console,
) -> MetaStep | None:
    """The meta step of a run, if its recipe learns anything by it."""
    meta, world = recipe.meta, accelerator.num_processes
    if augment.learned is None:
        return None
    requests = partial(
        meta_requests,
        parts.splits.meta,
        seed=recipe.run.seed,
        batch_size=meta.batch_size,
        world=world,
        rank=accelerator.process_index,
    )
    validation = ValidationGradient(
        network,
        meta_loader(recipe, accelerator, parts),
        augment,
        lambda first: requests(first=first),
        decay=0.5 ** (meta.every * meta.renew / meta.half_life) if meta.half_life else 0.0,
        seed=recipe.run.seed,
        total=over_processes,
        autocast=accelerator.autocast,
    )
    return MetaStep(
        recipe,
        accelerator,
        network,
        optimizer,
        augment,
        validation,
        sample_losses(recipe.augment),
        steps_per_epoch=order.steps_per_epoch,
        average=ema.module if ema is not None and meta.weights == "ema" else None,
        say=console.print,
    )


def assemble(recipe: Recipe, accelerator: Accelerator, folder: RunFolder, console: Console) -> Trainer:
    """A Trainer at step 0."""
    parts = find_data(recipe, accelerator)
    order = build_order(recipe, accelerator, parts.splits)
    chance = 1 / len(parts.classes)
    if recipe.augment.soften_p_max < chance:
        raise RecipeError([f"augment.soften_p_max: {recipe.augment.soften_p_max} is below chance, {chance:.4g}"])
    network = build_network(recipe, len(parts.classes), accelerator)
    hidden = HiddenCutMix(network, recipe.augment, recipe.data.img_size) if recipe.augment.mix_layer else None
    optimizer = build_optimizer(recipe.optim, network)
    learned = build_learned(recipe, accelerator, parts, optimizer)
    augment = BatchAugment(recipe, len(parts.classes), hidden, learned)
    rates = {"epochs": recipe.train.epochs, "updates_per_epoch": order.steps_per_epoch}
    set_rate = build_schedule(recipe.optim, optimizer, **rates)
    if learned is not None and learned.optim is not None:
        set_rate = build_learned_schedule(set_rate, optimizer, learned.optim)
    ema = build_ema(recipe.model, network)
    if recipe.model.compile:
        network.compile()
    model, prepared = accelerator.prepare(network, optimizer)
    losses = sample_losses(recipe.augment)
    size = 0 if parts.index is None else len(parts.index.labels)
    tested = evaluation_loader(recipe, accelerator, parts, held_out_ids(parts))
    return Trainer(
        recipe=recipe,
        accelerator=accelerator,
        folder=folder,
        console=console,
        parts=parts,
        order=order,
        loader=training_loader(recipe, accelerator, parts, order),
        augment=augment,
        objective=build_objective(recipe.augment),
        network=network,
        model=model,
        ema=ema,
        optimizer=prepared,
        set_rate=set_rate,
        meter=TrainMeter(accelerator),
        evaluator=Evaluator(recipe, accelerator, parts, tested, augment),
        sample_losses=SampleLosses(size, losses, accelerator.device) if recipe.run.log_losses else None,
        meta=build_meta(recipe, accelerator, parts, order, network, optimizer, ema, augment, console),
    )

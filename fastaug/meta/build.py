"""The meta step of a recipe, built from the parts of its run."""

from functools import partial

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from fastaug.augment.pipeline import BatchAugment
from fastaug.console import Console
from fastaug.data.build import DataParts
from fastaug.data.sampler import Order
from fastaug.distributed import over_processes
from fastaug.errors import DataError, RecipeError
from fastaug.losses import sample_losses
from fastaug.meta.parameters import MetaParameters
from fastaug.meta.step import MetaStep
from fastaug.meta.validation_gradient import ValidationGradient, meta_requests
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe
from fastaug.training.build_data import meta_loader


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
    least = SMALLEST_BATCH * accelerator.num_processes
    if recipe.meta.batch_size < least:
        raise RecipeError(
            [
                f"meta.batch_size: {recipe.meta.batch_size} is too small for {accelerator.num_processes} processes of "
                f"at least {SMALLEST_BATCH} images; set it to {least} or more"
            ]
        )
    assert parts.index is not None
    momentum = optimizer.param_groups[0].get("momentum")
    return MetaParameters(recipe, len(parts.index.labels), momentum, accelerator.device)


def build_validation(
    recipe: Recipe, accelerator: Accelerator, parts: DataParts, network: nn.Module, augment: BatchAugment
) -> ValidationGradient:
    """The gradient that the meta step follows, from the meta split."""
    meta = recipe.meta
    requests = partial(
        meta_requests,
        parts.splits.meta,
        seed=recipe.run.seed,
        batch_size=meta.batch_size,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    return ValidationGradient(
        network,
        meta_loader(recipe, accelerator, parts),
        augment,
        lambda first: requests(first=first),
        decay=0.5 ** (meta.every * meta.renew / meta.half_life) if meta.half_life else 0.0,
        seed=recipe.run.seed,
        total=over_processes,
        autocast=accelerator.autocast,
    )


def build_meta(
    recipe: Recipe,
    accelerator: Accelerator,
    parts: DataParts,
    order: Order,
    network: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    augment: BatchAugment,
    console: Console,
) -> MetaStep | None:
    """The meta step of a run, if its recipe learns anything by it."""
    if augment.learned is None:
        return None
    return MetaStep(
        recipe,
        accelerator,
        network,
        model,
        optimizer,
        augment,
        build_validation(recipe, accelerator, parts, network, augment),
        sample_losses(recipe.augment),
        steps_per_epoch=order.steps_per_epoch,
        average=ema.module if ema is not None and recipe.meta.weights == "ema" else None,
        say=console.print,
    )

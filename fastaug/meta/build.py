"""The meta step of a recipe, built from the parts of its run."""

from functools import partial

import torch
from accelerate import Accelerator

from fastaug.augment.learned_effects import Augmentation
from fastaug.data.build import DataParts
from fastaug.data.loaders.base import Loader
from fastaug.distributed import over_processes
from fastaug.errors import DataError, RecipeError
from fastaug.hypergrad.optimizer_jacobians.recorded_step import rule_of
from fastaug.losses import validation_loss
from fastaug.meta.in_pass import FusedStep, InstantStep
from fastaug.meta.learned_part import Setting
from fastaug.meta.one_step import OneStep
from fastaug.meta.parameters import LearnedParts, build_parts
from fastaug.meta.step import MetaStep, Training
from fastaug.meta.unrolled import UnrolledSteps
from fastaug.meta.validation_gradient import ValidationGradient, meta_requests
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe


def build_learned(
    recipe: Recipe, accelerator: Accelerator, parts: DataParts, optimizer: torch.optim.Optimizer
) -> LearnedParts | None:
    """The learned parts of a recipe, None if it learns nothing; DataError without a meta split that is large enough."""
    if not recipe.meta.learn:
        return None
    available = len(parts.splits.meta)
    if available < recipe.meta.batch_size:
        raise DataError(
            f"meta.learn: {recipe.meta.learn} needs a meta split of meta.batch_size = {recipe.meta.batch_size} images "
            f"or more, found {available}; set data.meta_fraction, or add a meta/ folder or list"
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
    images, classes = len(parts.index.labels), len(parts.classes)
    return build_parts(Setting(recipe, images, classes, optimizer, accelerator.device))


def build_validation(training: Training, parts: DataParts, loader: Loader, augment: Augmentation) -> ValidationGradient:
    """The validation gradient that the meta step follows, on the meta split, which `loader` gives."""
    recipe, accelerator, meta = training.recipe, training.accelerator, training.recipe.meta
    requests = partial(
        meta_requests,
        parts.splits.meta,
        seed=recipe.run.seed,
        batch_size=meta.batch_size,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    return ValidationGradient(
        training.network,
        loader,
        augment,
        lambda first: requests(first=first),
        loss=validation_loss(meta.validation_loss, recipe.augment),
        decay=0.5 ** (meta.every * meta.renew / meta.half_life) if meta.half_life else 0.0,
        seed=recipe.run.seed,
        total=over_processes,
        autocast=accelerator.autocast,
    )


def build_meta(
    training: Training, augment: Augmentation, learned: LearnedParts, validation: ValidationGradient
) -> MetaStep:
    """The meta step of a recipe, ready to act; RecipeError where its optimizer cannot be differentiated."""
    check_optimizer(training.recipe, training.optimizer)
    return strategy(training, learned)(training, augment, learned, validation)


def strategy(training: Training, learned: LearnedParts) -> type[MetaStep]:
    """The strategy (class of meta step) that a recipe asks for; RecipeError for several processes and K > 1."""
    meta = training.recipe.meta
    if any(part.instant for part in learned.each().values()):
        return InstantStep
    if meta.engine == "fused":
        return FusedStep
    if meta.steps == 1:
        return OneStep
    if training.accelerator.num_processes > 1:
        raise RecipeError(
            [
                f"meta.steps: {meta.steps} updates are differentiated in one process, found "
                f"{training.accelerator.num_processes}; set meta.steps to 1, or start one process"
            ]
        )
    return UnrolledSteps


def check_optimizer(recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    """RecipeError unless the steps of `optimizer` can be differentiated as the recipe needs it."""
    try:
        rule = rule_of(optimizer, recipe.meta.approximate)
    except ValueError as error:
        raise RecipeError([f"optim.opt: {error} (meta.approximate=true)"]) from error
    if rule.update is not None:
        return
    name = type(optimizer).__name__
    if "optim" in recipe.meta.learn:
        raise RecipeError([f"meta.learn: optim is not known for {name} with meta.approximate; leave one of them out"])
    if recipe.meta.steps > 1:
        raise RecipeError([f"meta.steps: updates of {name} are unrolled exactly or not at all; drop meta.approximate"])

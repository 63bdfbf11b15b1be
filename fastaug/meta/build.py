"""The meta step of a recipe, built from the parts of its run."""

from collections.abc import Callable
from functools import partial

import numpy as np
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
from fastaug.meta.reuse import StateOf, reused_parts
from fastaug.meta.step import MetaStep, Training, build_recording
from fastaug.meta.unrolled import UnrolledSteps
from fastaug.meta.validation_gradient import ValidationGradient, meta_requests, validated_names
from fastaug.recipe.schema import SMALLEST_BATCH, Meta, Recipe

FEW = 300  # meta steps that evidence needs to find harmful operations: 117 missed five of ten, 352 none
FAINT = 0.25 / 10  # share of the samples of training that K = 10 and f = 1/4 differentiate


def build_learned(
    recipe: Recipe,
    accelerator: Accelerator,
    parts: DataParts,
    optimizer: torch.optim.Optimizer,
    state_of: StateOf,
    say: Callable[[str], None],
) -> LearnedParts | None:
    """The learned parts of a recipe, None if it has none; DataError without a meta split that is large enough.

    `state_of` reads the newest checkpoint of a run that meta.reuse names.
    """
    if not recipe.meta.learn and recipe.meta.reuse is None:
        return None
    if not recipe.meta.acts_frozen:
        check_meta_split(recipe, accelerator, parts)
    assert parts.index is not None
    images, classes = len(parts.index.labels), len(parts.classes)
    trained = torch.from_numpy(parts.splits.train)
    labels = torch.from_numpy(parts.index.labels)
    setting = Setting(recipe, images, classes, optimizer, accelerator.device, trained, labels)
    if recipe.meta.reuse is None:
        return build_parts(setting)
    data = {parts.fingerprint(learns=True), parts.learned_on or ""}
    return reused_parts(setting, data, state_of, say)


def check_meta_split(recipe: Recipe, accelerator: Accelerator, parts: DataParts) -> None:
    """DataError or RecipeError unless there are meta images enough to learn from, of two classes or more."""
    available = len(parts.splits.meta)
    least = SMALLEST_BATCH * accelerator.num_processes
    if available < recipe.meta.batch_size:
        raise DataError(
            f"meta.learn: {recipe.meta.learn} needs a meta split of meta.batch_size = {recipe.meta.batch_size} images "
            f"or more, found {available}; give it more by data.meta_fraction or in a meta/ folder or list"
            + (f", or set meta.batch_size to {available}" if available >= least else "")
        )
    if recipe.meta.batch_size < least:
        raise RecipeError(
            [
                f"meta.batch_size: {recipe.meta.batch_size} is too small for {accelerator.num_processes} processes of "
                f"at least {SMALLEST_BATCH} images; set it to {least} or more"
            ]
        )
    check_meta_classes(parts)


def check_meta_classes(parts: DataParts) -> None:
    """DataError where the meta split shows one class only: whatever is learned would serve that class alone."""
    missing = missing_meta_classes(parts)
    if len(missing) == len(parts.classes) - 1:
        (shown,) = set(parts.classes) - set(missing)
        raise DataError(
            f"meta.learn: all {len(parts.splits.meta)} images of the meta split are of class {shown!r}, one of "
            f"{len(parts.classes)}; add images of the others to it"
        )


def missing_meta_classes(parts: DataParts) -> list[str]:
    """Classes without an image in the meta split."""
    assert parts.index is not None
    shown = set(np.unique(parts.index.labels[parts.splits.meta]).tolist())
    return [name for label, name in enumerate(parts.classes) if label not in shown]


def build_validation(training: Training, parts: DataParts, loader: Loader, augment: Augmentation) -> ValidationGradient:
    """The validation gradient that the meta step follows, on the meta split, which `loader` gives."""
    recipe, accelerator, meta = training.recipe, training.accelerator, training.recipe.meta
    if missing := missing_meta_classes(parts):
        training.say(
            f"meta step: {len(missing)} of {len(parts.classes)} classes have no image in the meta split and nothing "
            f"is learned for them, the first {missing[0]!r}; add some"
        )
    requests = partial(
        meta_requests,
        parts.splits.meta,
        seed=recipe.run.seed,
        batch_size=meta.batch_size,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    validation = ValidationGradient(
        training.network,
        loader,
        augment,
        lambda first: requests(first=first),
        loss=validation_loss(meta.validation_loss, recipe.augment),
        decay=0.5 ** (meta.every * meta.renew / meta.half_life) if meta.half_life else 0.0,
        seed=recipe.run.seed,
        total=over_processes,
        autocast=accelerator.autocast,
        cycle=-(-len(parts.splits.meta) // meta.batch_size),
    )
    validation.recording = build_recording(meta, accelerator.device)
    return validation


def build_meta(
    training: Training, augment: Augmentation, learned: LearnedParts, validation: ValidationGradient
) -> MetaStep:
    """The meta step of a recipe, ready to act; RecipeError where parts, optimizer or processes do not suit it."""
    meta, parts = training.recipe.meta, learned.each()
    instant = [name for name, part in parts.items() if part.instant]
    if instant:
        check_instant(meta, instant, len(parts))
    if meta.engine == "fused":
        check_fused(learned)
    check_share(training)
    if meta.steps > 1:
        check_windows(training)
    if meta.regulariser not in ("none", "start"):
        learned.penalty(meta.regulariser)
    check_optimizer(training, learned)
    for said in (faint_probabilities(meta), gathering(training)):
        if said is not None:
            training.say(f"meta step: {said}")
    return strategy(meta, instant=bool(instant))(training, augment, learned, validation)


def strategy(meta: Meta, *, instant: bool) -> type[MetaStep]:
    """The class of meta step for the parts and the engine of a recipe."""
    if instant:
        return InstantStep
    if meta.engine == "fused":
        return FusedStep
    return OneStep if meta.steps == 1 else UnrolledSteps


def faint_probabilities(meta: Meta) -> str | None:
    """What to say where a policy's probabilities get too few samples by score function to be told from noise.

    Measured with K = 10 and f = 1/4 at ten times the usual rate: docs/policies.md. What sees more samples is not known
    to be enough, and is left to whoever chose it.
    """
    by_score = "policy" in meta.learn and meta.learn_probabilities and meta.probabilities == "score"
    if not by_score or meta.fraction / meta.every > FAINT:
        return None
    return (
        f"meta.probabilities: score with meta.every = {meta.every} and meta.fraction = {meta.fraction:g} has not moved "
        "harmful operations away from where they started (docs/policies.md); evidence, the default, does: leave out "
        "meta.probabilities and, of the other keys of meta, what does not go with evidence (docs/meta.md)"
    )


def gathering(training: Training) -> str | None:
    """What to say of a policy that learns by evidence: what follows from that, as no recipe has to name it."""
    meta = training.recipe.meta
    if not meta.by_evidence:
        return None
    names = validated_names(training.network, meta.layers)
    weights = {name: weight.numel() for name, weight in training.network.named_parameters() if weight.requires_grad}
    share = sum(weights[name] for name in names or weights) / sum(weights.values())
    where = "in the whole network" if names is None else f"in {share:.0%} of the weights, from {names[0]} on"
    said = (
        f"the policy learns by evidence of harm, {where} (meta.layers), from all samples of an update in {meta.every}, "
        "in the training pass (meta.engine: fused); probabilities move, magnitudes stay (meta.probabilities: evidence)"
    )
    learning = training.recipe.train.epochs - meta.start_epochs - meta.settle_epochs
    updates = round(learning * training.steps_per_epoch)
    if updates < FEW * meta.every:
        often = f"set meta.every to {max(1, updates // FEW)}" if meta.every > 1 else ""
        remedy = " and ".join(filter(None, [often, "raise train.epochs" if updates < FEW else ""]))
        few = f"these are {updates // meta.every} meta steps, too few to find all that harms (docs/policies.md)"
        said += f"; {few}: {remedy}"
    if meta.every == 1 and meta.explore and not meta.settle_epochs:
        said += "; what is found does not change the images of this run, as each update is looked at (meta.explore)"
    return said


# The recipe's own rules say the same of the parts that they know by name; these ask whatever was built.


def check_instant(meta: Meta, instant: list[str], parts: int) -> None:
    """RecipeError unless instant parts are alone and set in every update."""
    problems = []
    if len(instant) < parts:
        problems.append(
            f"meta.learn: {', '.join(instant)}: instant parts cannot be learned beside others; leave those out"
        )
    for key, given in (("every", meta.every), ("fraction", meta.fraction), ("steps", meta.steps)):
        if given != 1:
            problems.append(f"meta.{key}: {given} does not suit instant parts ({', '.join(instant)}); set it to 1")
    if meta.engine == "implicit":
        problems.append("meta.engine: implicit needs an update that is known; instant parts are set before theirs")
    if problems:
        raise RecipeError(problems)


def check_fused(learned: LearnedParts) -> None:
    """RecipeError where a part learns through anything but targets and the probabilities of what is drawn."""
    others = [name for name, part in learned.each().items() if part.through_images or not part.on_batch]
    if others:
        found = ", ".join(others)
        raise RecipeError(
            [
                f"meta.engine: fused differentiates targets and probabilities only, and {found} learns elsewhere; "
                "choose another engine, and of a policy other meta.probabilities than evidence"
            ]
        )


def check_share(training: Training) -> None:
    """RecipeError where a process has too few of the images that a meta step differentiates."""
    meta, processes = training.recipe.meta, training.accelerator.num_processes
    differentiated = len(training.differentiated(0))
    if differentiated < SMALLEST_BATCH * processes:
        raise RecipeError(
            [
                f"meta.fraction: {meta.fraction} of an update's last micro-batches are {differentiated} images, fewer "
                f"than {SMALLEST_BATCH} for each of {processes} processes; raise it, or lower train.accumulate"
            ]
        )


def check_windows(training: Training) -> None:
    """RecipeError where K updates cannot be differentiated together."""
    recipe, processes = training.recipe, training.accelerator.num_processes
    if processes > 1:
        raise RecipeError(
            [
                f"meta.steps: {recipe.meta.steps} updates are differentiated in one process, found {processes}; set "
                "meta.steps to 1, or start one process"
            ]
        )
    epochs = recipe.train.epochs - recipe.meta.start_epochs - recipe.meta.settle_epochs
    updates = round(epochs * training.steps_per_epoch)
    if updates < recipe.meta.steps:
        raise RecipeError(
            [
                f"meta.steps: {recipe.meta.steps} is more than the {updates} updates between meta.start_epochs and "
                "meta.settle_epochs; lower it"
            ]
        )


def check_optimizer(training: Training, learned: LearnedParts) -> None:
    """RecipeError unless the steps of the optimizer can be differentiated as the recipe needs it."""
    meta, name = training.recipe.meta, type(training.optimizer).__name__
    try:
        rule = rule_of(training.optimizer, meta.approximate)
    except ValueError as error:
        raise RecipeError([f"optim.opt: {error} (meta.approximate=true)"]) from error
    if rule.update is None and learned.acts_on_updates:
        rates = ", ".join(part for part, built in learned.each().items() if not built.on_batch)
        raise RecipeError([f"meta.learn: {rates} is not known for {name} with meta.approximate; leave one of them out"])
    if rule.update is None and meta.steps > 1:
        raise RecipeError([f"meta.steps: updates of {name} are unrolled exactly or not at all; drop meta.approximate"])

"""Builds a run from its recipe: everything the loop needs, in the order in which it can fail cheapest."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from fastaug.augment.feature_cutmix import HiddenCutMix
from fastaug.augment.pipeline import BatchAugment
from fastaug.console import Console
from fastaug.data.build import DataParts
from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import Order
from fastaug.data.splits import Splits
from fastaug.distributed import divides, sharding_mesh, share_weights
from fastaug.errors import DataError, RecipeError, StorageError
from fastaug.evaluation.evaluate import Evaluator, held_out_ids
from fastaug.evaluation.per_sample import SampleLosses, build_sample_losses
from fastaug.evaluation.training_record import TrainingRecord, build_record
from fastaug.losses import Objective, build_objective, sample_losses
from fastaug.meta.build import build_learned, build_meta, build_validation
from fastaug.meta.frozen import FrozenParts
from fastaug.meta.step import NoMetaStep, Training, ignored
from fastaug.nets.check_names import check_shapes
from fastaug.nets.clipping import Clipping
from fastaug.nets.freezing import Freezing
from fastaug.nets.initial_weights import Fit
from fastaug.nets.initial_weights import ignored as ignored_fit
from fastaug.nets.model import build_ema, build_model, synchronised
from fastaug.nets.optim import SetRate, build_optimizer, build_schedule
from fastaug.nets.plateau import Plateau
from fastaug.nets.sharding import shard
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe
from fastaug.seeding import Key, Stream, scalar_seed
from fastaug.training import checkpoint
from fastaug.training.build_data import evaluation_loader, find_data, meta_loader, training_loader
from fastaug.training.checkpoint_writer import CheckpointWriter
from fastaug.training.class_balance import build_adjustment, build_draws
from fastaug.training.distillation import Teacher, build_teacher
from fastaug.training.finite_check import FiniteCheck
from fastaug.training.image_weights import build_image_weights
from fastaug.training.late_processes import Pulse
from fastaug.training.run_folder import RunFolder
from fastaug.training.trackers import Trackers
from fastaug.training.train_meter import TrainMeter


@dataclass
class Progress:
    """The progress of a run; all of it is in every checkpoint."""

    step: int = 0  # updates done
    images_seen: int = 0
    train_seconds: float = 0.0
    epoch_began: float = 0.0  # train_seconds at the start of the present epoch
    best_step: int | None = None
    best_value: float | None = None  # of eval.best_metric
    stale: int = 0  # evaluations of select since the best one
    skipped: dict[int, str] = field(default_factory=dict)  # damaged images met by any process


@dataclass
class Trainer:
    """Everything that one process of a run works with."""

    recipe: Recipe
    accelerator: Accelerator
    folder: RunFolder
    console: Console
    trackers: Trackers
    parts: DataParts
    order: Order
    loader: Loader
    augment: BatchAugment
    objective: Objective
    teacher: Teacher | None  # None unless distill.teacher
    network: nn.Module  # the plain module, for weights and evaluation
    model: nn.Module  # the same behind Accelerate: precision and processes
    ema: ModelEmaV3 | None
    freezing: Freezing
    optimizer: Any  # Accelerate's, around timm's
    set_rate: SetRate
    clip: Clipping
    plateau: Plateau | None  # None unless optim.sched is plateau
    meter: TrainMeter
    evaluator: Evaluator
    sample_losses: SampleLosses | None  # None unless run.log_losses
    record: TrainingRecord | None  # None unless run.sample_record, and of synthetic images
    meta: NoMetaStep
    writer: CheckpointWriter
    finite: FiniteCheck
    progress: Progress = field(default_factory=Progress)
    pulse: Pulse = field(default_factory=Pulse)
    evaluated: dict[str, Any] | None = None  # the scalars of the last evaluation in training, with its step and split

    @property
    def last_step(self) -> int:
        """Updates of the whole run."""
        return self.recipe.train.epochs * self.order.steps_per_epoch

    @property
    def metric(self) -> str:
        """The figure of the select split that picks the best checkpoint."""
        return self.recipe.eval.best_metric if self.recipe.data.multi_label == "off" else "mean_ap"

    @property
    def early(self) -> str | None:
        """Why the training ends before its last update, by train.patience; None where it does not."""
        recipe, progress = self.recipe, self.progress
        if not 0 < recipe.train.patience <= progress.stale or progress.step >= self.last_step:
            return None
        per_epoch = self.order.steps_per_epoch
        best = "" if progress.best_step is None else f", the best of epoch {progress.best_step // per_epoch}"
        return (
            f"stopped early after epoch {progress.step // per_epoch} of {recipe.train.epochs}: {progress.stale} "
            f"evaluations of select without a better {self.metric}{best}; the learning rate's schedule "
            f"was that of {recipe.train.epochs} epochs"
        )

    @property
    def ended(self) -> bool:
        """Whether all of the training is done, or what train.patience leaves of it."""
        return self.progress.step >= self.last_step or self.early is not None

    def pass_seed(self, step: int, micro: int) -> int:
        """What seeds torch's generator before the forward pass of micro-batch `micro` of update `step` (from 0)."""
        order = self.order
        key = Key(self.recipe.run.seed, step // order.steps_per_epoch, Stream.MODEL)
        return scalar_seed(key, (step * order.accumulate + micro) * order.world + order.rank)

    def weights(self, kind: str) -> nn.Module:
        """The network with its "raw" or its "ema" weights."""
        if kind == "raw":
            return self.network
        assert self.ema is not None
        return self.ema.module


def build_order(recipe: Recipe, accelerator: Accelerator, parts: DataParts) -> Order:
    """The training order as this process sees it; DataError when the batch does not suit the split."""
    order = Order(
        ids=parts.splits.train,
        seed=recipe.run.seed,
        batch_size=recipe.train.batch_size,
        world=accelerator.num_processes,
        rank=accelerator.process_index,
        accumulate=recipe.train.accumulate,
        group=recipe.augment.mix_group or 1,
        drop_last=recipe.train.drop_last,
        repeats=recipe.augment.repeats,
        views=1 + recipe.augment.copies,
        drawn=build_draws(recipe, parts),
    )
    order.check(SMALLEST_BATCH)
    return order


def check_select(recipe: Recipe, splits: Splits) -> None:
    """DataError where train.patience or another eval.best_metric than the default has no select split to look at."""
    if recipe.train.patience and not len(splits.select):
        raise DataError(
            f"train.patience: {recipe.train.patience} counts evaluations of the select split, and there is none; set "
            "data.select_fraction, say to 0.1, or train.patience to 0"
        )
    if recipe.eval.best_metric != "top1" and not len(splits.select):
        raise DataError(
            f"eval.best_metric: {recipe.eval.best_metric} of the select split, and there is none; set "
            "data.select_fraction, say to 0.1, or leave it out"
        )


def build_network(
    recipe: Recipe, classes: int, accelerator: Accelerator, tell: Callable[[Fit], None] = ignored_fit
) -> nn.Module:
    """The network of a recipe with its initial weights, on the device, or on the host where it will be divided.

    `tell` hears how those of a file fit.
    """
    if recipe.augment.soften_p_max < 1 / classes:
        found = f"{recipe.augment.soften_p_max} is below chance, {1 / classes:.4g}"
        raise RecipeError([f"augment.soften_p_max: {found}"])
    outputs = classes + recipe.augment.other_class
    if ":" not in recipe.model.name:  # one from the hub is known only when it is there
        check_shapes(recipe, outputs)
    torch.manual_seed(recipe.run.seed)
    network = build_model(recipe.model, outputs, tell, channels=recipe.data.channels)
    if not divides(recipe, accelerator):  # else `shard` takes it there block by block
        network = network.to(accelerator.device)
    if recipe.model.sync_bn:
        return synchronised(network, accelerator.num_processes, accelerator.device)
    return network


def build_average(recipe: Recipe, network: nn.Module, accelerator: Accelerator, console: Console) -> ModelEmaV3 | None:
    """The moving average of the network, if there is one; both are divided where the processes divide the network."""
    whole = not divides(recipe, accelerator)
    if not whole:
        share_weights(network, accelerator.device)
    ema = build_ema(recipe.model, network, foreach=whole)  # a foreach takes no mixture of DTensors and buffers
    if not whole:
        mesh = sharding_mesh(accelerator)
        console.print("\n".join(shard(network, mesh, recipe.model.name).lines()))
        if ema is not None:
            shard(ema.module, mesh, recipe.model.name)
    return ema


def tell_fit(fit: Fit, folder: RunFolder, console: Console) -> None:
    """Says how initial weights fit the network, on the screen and in status.json."""
    console.print("\n".join(fit.lines()))
    folder.notes["initial_checkpoint"] = fit.as_dict()


def build_freezing(
    recipe: Recipe, network: nn.Module, accelerator: Accelerator, steps_per_epoch: int, console: Console
) -> Freezing:
    """The frozen weights of a recipe; a warning where they are random."""
    model = recipe.model
    freezing = Freezing(
        network,
        model,
        head_first=round(model.head_first_epochs * steps_per_epoch),
        processes=accelerator.num_processes,
    )
    if (model.freeze or model.head_first_epochs) and not (model.pretrained or model.initial_checkpoint):
        console.print("warning: frozen weights are random ones; set model.pretrained or model.initial_checkpoint")
    if model.freeze:
        trained = sum(p.requires_grad for p in network.parameters())
        console.print(f"{trained} of {len(list(network.parameters()))} parameters are trained (model.freeze)")
    return freezing


def build_plateau(recipe: Recipe, splits: Splits) -> Plateau | None:
    """The state of a plateau schedule, if the recipe has one; RecipeError without a split that it can follow."""
    if recipe.optim.sched != "plateau":
        return None
    if not len(splits.select):
        remedy = "set data.select_fraction, say to 0.1, or name ids in select.txt of data.splits"
        raise RecipeError([f"optim.sched: plateau follows the select split, and there is none; {remedy}"])
    return Plateau(recipe.optim)


def newest_state(run: Path) -> dict[str, Any]:
    """The state in the newest sound checkpoint of the run folder `run`, which is another run's; RecipeError without."""
    try:
        path, _ = checkpoint.latest(run / "checkpoints")
        if path is not None:
            return checkpoint.load(path, whole=False).state
    except StorageError as error:
        raise RecipeError([str(error)]) from error
    raise RecipeError([f"{run}: has no checkpoint; name the folder of a run that has one"])


def assemble(recipe: Recipe, accelerator: Accelerator, folder: RunFolder, console: Console) -> Trainer:
    """The Trainer of a recipe, at step 0."""
    parts = find_data(recipe, accelerator, bars=console.speaks)
    check_select(recipe, parts.splits)
    order = build_order(recipe, accelerator, parts)
    adjustment = build_adjustment(recipe, parts, accelerator.device)
    losses = sample_losses(recipe.augment, adjustment)
    network = build_network(recipe, len(parts.classes), accelerator, lambda fit: tell_fit(fit, folder, console))
    freezing = build_freezing(recipe, network, accelerator, order.steps_per_epoch, console)
    hidden = (
        HiddenCutMix(network, recipe.augment, recipe.data.img_size, recipe.data.channels)
        if recipe.augment.mix_layer
        else None
    )
    ema = build_average(recipe, network, accelerator, console)
    optimizer = build_optimizer(recipe.optim, network)
    learned = build_learned(recipe, accelerator, parts, optimizer, newest_state, console.print)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    images = None if parts.index is None else len(parts.index)
    record = build_record(recipe, images, len(parts.classes), accelerator, order.largest_piece())
    image_weights = build_image_weights(recipe, parts, record, accelerator.device)
    multi_hot = parts.multi_hot(accelerator.device)
    augment = BatchAugment(recipe, len(parts.classes), hidden, learned, dtype, image_weights, multi_hot)
    plateau = build_plateau(recipe, parts.splits)
    updates = {"epochs": recipe.train.epochs, "updates_per_epoch": order.steps_per_epoch}
    set_rate = build_schedule(recipe.optim, optimizer, **updates, plateau=plateau)
    # The same weights, for the meta step, without what compilation and Accelerate add; a divided network has none.
    plain = network if divides(recipe, accelerator) else copy(network)
    if recipe.model.compile:
        network.compile()
    if divides(recipe, accelerator):  # Accelerate adds autocast, and leaves the processes to fully_shard
        model, prepared = accelerator.prepare_model(network, evaluation_mode=True), accelerator.prepare(optimizer)
    else:
        model, prepared = accelerator.prepare(network, optimizer)
    meta: NoMetaStep = NoMetaStep()
    if learned is not None:
        set_rate = learned.scheduled(set_rate, optimizer)
    if learned is not None and recipe.meta.acts_frozen:
        meta = FrozenParts(learned, "meta.operations" if recipe.meta.reuse is None else "meta.reuse")
    elif learned is not None:
        training = Training(
            recipe=recipe,
            accelerator=accelerator,
            network=plain,
            model=model,
            optimizer=optimizer,
            average=ema.module if ema is not None and recipe.meta.weights == "ema" else None,
            average_decay=lambda step: 0.0 if ema is None else ema.get_decay(step + 1),
            losses=losses,
            steps_per_epoch=order.steps_per_epoch,
            update_size=order.size,
            differentiated=lambda step: order.spread(step, recipe.meta.fraction, SMALLEST_BATCH),
            say=console.print,
            views=order.views,
            one_sided=recipe.augment.consistency_detach or "shakedrop" in recipe.model.kwargs,
            see_harm=ignored if record is None else record.add_harm,
        )
        validation = build_validation(training, parts, meta_loader(recipe, accelerator, parts), augment)
        meta = build_meta(training, augment, learned, validation)
    tested = evaluation_loader(recipe, accelerator, parts, held_out_ids(parts))
    return Trainer(
        recipe=recipe,
        accelerator=accelerator,
        folder=folder,
        console=console,
        trackers=Trackers(recipe, folder, console, accelerator.is_main_process),
        parts=parts,
        order=order,
        loader=training_loader(recipe, accelerator, parts, order),
        augment=augment,
        objective=build_objective(recipe.augment, adjustment),
        teacher=build_teacher(
            recipe, len(parts.classes), accelerator, lambda fit: console.print("\n".join(fit.lines()))
        ),
        network=network,
        model=model,
        ema=ema,
        freezing=freezing,
        optimizer=prepared,
        set_rate=set_rate,
        clip=Clipping(recipe.optim, network),
        plateau=plateau,
        meter=TrainMeter(accelerator),
        evaluator=Evaluator(recipe, accelerator, parts, tested, augment),
        sample_losses=build_sample_losses(recipe, accelerator, parts, losses),
        record=record,
        meta=meta,
        writer=CheckpointWriter(asynchronous=recipe.run.checkpoint_async),
        finite=FiniteCheck(accelerator),
    )

"""The training loop: the order of events of a run, top to bottom."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from fastaug.batch import Batch
from fastaug.distributed import any_process, time_kernels
from fastaug.errors import FastaugError, NoImageError, Stopped
from fastaug.nets.recomputing import backward_pass
from fastaug.training.build import Trainer
from fastaug.training.plain_step import plain_step
from fastaug.training.reporting import (
    check_epoch,
    collect_skipped,
    evaluate_end,
    evaluate_epoch,
    log_batch,
    log_epoch,
    log_ids,
    log_meta,
    log_training,
)
from fastaug.training.signals import StopRequest
from fastaug.training.timing import Awaited, Clock
from fastaug.training.trainer_state import restore, save


def fit(trainer: Trainer, stop: StopRequest) -> dict[str, Any]:
    """Trains from the last checkpoint to the end; the figures of the held-out splits. Stopped after a signal."""
    restore(trainer)
    trainer.pulse.place = (trainer.progress.step, 0)
    trainer.trackers.start(trainer.progress.step)
    progress, order, run = trainer.progress, trainer.order, trainer.recipe.run
    batches = Awaited(trainer.loader.batches(order.requests(progress.step, trainer.last_step)))
    batches.images = progress.step % order.steps_per_epoch  # of the epoch so far; 0 only at its start
    clock, total = Clock(progress, batches), trainer.last_step
    with trainer.console.bar("training", total, progress.step) as bar:
        while not trainer.ended:
            # ---- one update ----
            try:
                rate = train_step(trainer, batches)
            except FastaugError:
                trainer.finite.settle()  # a GPU's answers are late: what is wrong here may come of a loss then
                raise
            bar.advance(f"epoch {(progress.step - 1) // order.steps_per_epoch + 1}/{trainer.recipe.train.epochs}")

            # ---- log, evaluate ----
            epoch_ends = progress.step % order.steps_per_epoch == 0
            logs = progress.step % run.log_every == 0 or epoch_ends
            if logs:
                trainer.finite.settle()
                log_training(trainer, rate, clock)
            if epoch_ends:
                check_epoch(trainer, batches)
                log_epoch(trainer, clock)
            try:
                with trainer.pulse.busy("evaluates"):
                    improved = epoch_ends and evaluate_epoch(trainer, clock)
            except NoImageError:  # a split without an image ends the run, not what it has learned
                keep_last(trainer, clock)
                raise

            # ---- stop, save ----
            trainer.writer.check()
            reason = stop.reason()
            # With several processes all stop at the same update: at a log line, where they synchronise anyway.
            stops = (logs or trainer.accelerator.num_processes == 1) and any_process(trainer.accelerator, bool(reason))
            due = progress.step % run.checkpoint_every == 0 if run.checkpoint_every else epoch_ends
            if stops or trainer.ended:
                keep_last(trainer, clock)
            elif improved or due:
                keep(trainer, clock)
            if stops:
                raise Stopped(f"{reason or 'another process was told to stop'}; the same command continues from here")
            clock.resume()
    if trainer.early is not None:
        trainer.console.print(trainer.early)
    with trainer.pulse.busy("evaluates"):
        return evaluate_end(trainer)


def keep(trainer: Trainer, clock: Clock) -> None:
    """Saves a checkpoint, and what has to be told before it; the clock stands still."""
    clock.pause()
    with trainer.pulse.busy("saves a checkpoint"):
        trainer.finite.settle()
        collect_skipped(trainer)
        log_meta(trainer)
        save(trainer)


def keep_last(trainer: Trainer, clock: Clock) -> None:
    """As `keep`, and behind it the checkpoint is there, for all processes; every one must call this.

    None leaves earlier, or its launcher would end the others. They wait for one write at a time, as
    run.peer_timeout is meant: an asynchronous one may be on its way here, and is waited for apart.
    """
    clock.pause()
    with trainer.pulse.busy("saves a checkpoint"):
        trainer.writer.finish()
    trainer.accelerator.wait_for_everyone()
    keep(trainer, clock)
    with trainer.pulse.busy("saves a checkpoint"):
        trainer.writer.finish()
    trainer.writer.release()
    trainer.accelerator.wait_for_everyone()


def train_step(trainer: Trainer, batches: Iterator[Batch]) -> float:
    """One update: forward and backward for each micro-batch, one optimizer step, the meta step; its learning rate."""
    accelerator, progress, order, meta = trainer.accelerator, trainer.progress, trainer.order, trainer.meta
    step, world = progress.step, accelerator.num_processes
    epoch, images = step // order.steps_per_epoch, order.size(step)
    rate = trainer.set_rate(step)
    trainer.freezing.begin(step)
    meta.begin(step)
    total = torch.zeros((), device=accelerator.device)
    ids = []
    if trainer.record is not None:
        trainer.record.begin(epoch)
    for micro in range(order.accumulate):
        # ---- load, augment ----
        trainer.pulse.begin()
        batch = next(batches)
        ids.append(batch.ids)
        time_kernels(trainer.recipe, again=len(batch.ids) in order.piece_sizes)
        inputs, target = trainer.augment.training(batch, epoch)
        trainer.pulse.arrive(step * order.accumulate + micro + 1, order.accumulate)

        # ---- forward ----
        # Dropout and drop path draw from torch's generator: seeding each pass leaves no state to save.
        seed = trainer.pass_seed(step, micro)
        torch.manual_seed(seed)
        last = micro == order.accumulate - 1
        with nullcontext() if last else accelerator.no_sync(trainer.model):
            taken, trained = meta.before_forward(inputs, target, step, seed)
            logits = trainer.model(inputs) if taken is None else taken
            if step == micro == 0:
                log_batch(trainer, batch, inputs, trained, epoch)

            # ---- loss, backward ----
            # Of all processes' images, damaged ones too: every image weighs the same at any number of processes.
            loss = trainer.objective(logits, trained)
            if trainer.teacher is not None:
                loss = trainer.teacher.joined(loss, inputs, logits, len(batch.ids))
            loss = loss / images
            with backward_pass(trainer.network, recomputes=trainer.recipe.model.grad_checkpointing):
                accelerator.backward(loss * world)  # DistributedDataParallel divides by the number of processes
        total += loss.detach()
        if trainer.sample_losses is not None:
            trainer.sample_losses.add(batch, logits.detach(), trained)
        if trainer.record is not None:
            trainer.record.add(batch, logits.detach(), target)

    # ---- clip, check ----
    trainer.freezing.end(step)
    # The norm is the same on all processes; with fp16 the scaler answers to gradients that overflow.
    norm = trainer.clip(accelerator, trainer.model)
    checked = torch.stack([total, norm.to(total)]) if accelerator.scaler is None else total
    trainer.finite.ask(checked, "the training loss or its gradient", step)

    # ---- update, moving average, meta step ----
    meta.before_update(step, norm)
    trainer.optimizer.step()
    if trainer.ema is not None:
        trainer.ema.update(trainer.network, step + 1)
    meta.after_update(batch, logits.detach(), step, seed)
    trainer.optimizer.zero_grad()
    if trainer.recipe.train.plain_step:
        plain_step(trainer, batch, images)

    # ---- count ----
    trainer.meter.add(total, norm)
    progress.step, progress.images_seen = step + 1, progress.images_seen + images
    log_ids(trainer, ids, epoch)
    return rate

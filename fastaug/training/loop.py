"""The training loop: the order of events of a run, top to bottom."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.distributed import any_process, merged, stop_if_not_finite
from fastaug.errors import Stopped
from fastaug.evaluation.per_sample import found_errors, sample_figures, write_samples
from fastaug.meta.log import alarms
from fastaug.reports.batch_grid import log_batch
from fastaug.seeding import Key, Stream, scalar_seed
from fastaug.targets import SoftTarget
from fastaug.training.build import Trainer
from fastaug.training.signals import StopRequest
from fastaug.training.trainer_state import restore, save


def fit(trainer: Trainer, stop: StopRequest) -> dict[str, Any]:
    """Trains from the last checkpoint to the end; the figures of the held-out splits. Stopped after a signal."""
    restore(trainer)
    progress, order, run = trainer.progress, trainer.order, trainer.recipe.run
    batches = Awaited(trainer.loader.batches(order.requests(progress.step, trainer.last_step)))
    clock = Clock(trainer, batches)
    total = trainer.last_step
    with trainer.console.bar("training", total, progress.step) as bar:
        while progress.step < total:
            rate = train_step(trainer, batches)
            bar.advance(f"epoch {(progress.step - 1) // order.steps_per_epoch + 1}/{trainer.recipe.train.epochs}")
            epoch_ends = progress.step % order.steps_per_epoch == 0
            logs = progress.step % run.log_every == 0 or epoch_ends
            if logs:
                log_training(trainer, rate, clock)
            improved = epoch_ends and evaluate_epoch(trainer, clock)
            reason = stop.reason()
            # With several processes all stop at the same update: at a log line, where they synchronise anyway.
            stops = (logs or trainer.accelerator.num_processes == 1) and any_process(trainer.accelerator, bool(reason))
            if stops or improved or progress.step == total or saves(run.checkpoint_every, progress.step, epoch_ends):
                clock.pause()
                collect_skipped(trainer)
                log_meta(trainer)
                save(trainer)
            if stops:
                trainer.accelerator.wait_for_everyone()  # a launcher ends all processes when the first one leaves
                raise Stopped(f"{reason or 'another process was told to stop'}; the same command continues from here")
            clock.resume()
    return evaluate_end(trainer)


def saves(every: int, step: int, epoch_ends: bool) -> bool:
    """Whether run.checkpoint_every asks for a checkpoint at this update."""
    return step % every == 0 if every else epoch_ends


def train_step(trainer: Trainer, batches: Iterator[Batch]) -> float:
    """One update: forward and backward for each micro-batch, one optimizer step, a meta step if one is due.

    Returns its learning rate.
    """
    accelerator, progress, order = trainer.accelerator, trainer.progress, trainer.order
    step, world = progress.step, accelerator.num_processes
    epoch, images = step // order.steps_per_epoch, order.size(step)
    rate = trainer.set_rate(step)
    total = torch.zeros((), device=accelerator.device)
    ids = []
    for micro in range(order.accumulate):
        batch = next(batches)
        inputs, target = trainer.augment.training(batch, epoch)
        last = micro == order.accumulate - 1
        # Dropout and drop path draw from torch's generator: seeding each pass leaves no state to save.
        seed = scalar_seed(
            Key(trainer.recipe.run.seed, epoch, Stream.MODEL), (step * order.accumulate + micro) * world + order.rank
        )
        torch.manual_seed(seed)
        with nullcontext() if last else accelerator.no_sync(trainer.model):
            logits, target = forward(trainer, inputs, target, seed)
            if step == micro == 0:
                log_batch(trainer, batch, inputs, target, epoch)
            # Of all processes' images, damaged ones too: every image weighs the same at any number of processes.
            loss = trainer.objective(logits, target) / images
            accelerator.backward(loss * world)  # DistributedDataParallel divides by the number of processes
        total += loss.detach()
        if trainer.sample_losses is not None:
            trainer.sample_losses.add(batch, logits.detach(), target)
        ids.append(batch.ids)
    update(trainer, batch, logits.detach(), total, seed)
    trainer.meter.add(total)
    progress.step, progress.images_seen = step + 1, progress.images_seen + images
    if trainer.recipe.run.log_ids:
        line = {"step": progress.step, "epoch": epoch, "ids": torch.cat(ids).tolist()}
        trainer.folder.append(f"ids-{order.rank}.jsonl", line)
    return rate


def forward(trainer: Trainer, inputs: Tensor, target: SoftTarget, seed: int) -> tuple[Tensor, SoftTarget]:
    """Logits of a micro-batch, and its target with instant weights and labels if the recipe learns those."""
    meta, step = trainer.meta, trainer.progress.step
    logits = None
    if meta is not None and meta.joins_pass(step):
        logits, target = meta.forward(inputs, target, step, seed)
    return trainer.model(inputs) if logits is None else logits, target


def update(trainer: Trainer, batch: Batch, logits: Tensor, loss: Tensor, seed: int) -> None:
    """Clips, steps the optimizer and the moving average, and takes the meta step.

    `batch`, `logits` and `seed` are those of the last micro-batch, `loss` is that of the update.
    """
    accelerator, step = trainer.accelerator, trainer.progress.step
    meta = trainer.meta if trainer.meta is not None and trainer.meta.due(step) else None
    # The norm is the same on all processes; with fp16 the scaler answers to gradients that overflow.
    norm = accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.recipe.optim.clip_grad or math.inf)
    checked = torch.stack([loss, norm.to(loss)]) if accelerator.scaler is None else loss
    stop_if_not_finite(accelerator, checked, "the training loss or its gradient", step)
    if meta is not None:
        meta.record(norm)
    trainer.optimizer.step()
    if trainer.ema is not None:
        trainer.ema.update(trainer.network, step + 1)
    if meta is not None:
        meta.step(batch, logits, step, seed)
    trainer.optimizer.zero_grad()


class Awaited:
    """The batches of a loader, and the seconds that this process has waited for them.

    On a GPU the device may still work meanwhile: the share of waiting is the most that loading can cost.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


class Clock:
    """Training time, without evaluation and checkpoints; throughput and waiting since the last log line."""

    def __init__(self, trainer: Trainer, batches: Awaited) -> None:
        self._trainer, self._batches = trainer, batches
        self._started: float | None = time.perf_counter()
        self._lap = (trainer.progress.images_seen, trainer.progress.train_seconds, batches.seconds)

    def pause(self) -> None:
        if self._started is not None:
            self._trainer.progress.train_seconds += time.perf_counter() - self._started
            self._started = None

    def resume(self) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def lap(self) -> tuple[float, float]:
        """Images per second, and the share of the time spent waiting for batches, since the last call."""
        self.pause()
        self.resume()
        progress = self._trainer.progress
        now = (progress.images_seen, progress.train_seconds, self._batches.seconds)
        images, seconds, waited = (after - before for after, before in zip(now, self._lap, strict=True))
        self._lap = now
        return images / seconds, waited / seconds


def log_training(trainer: Trainer, rate: float, clock: Clock) -> None:
    """One line of metrics.jsonl, the screen and the trackers."""
    loss = trainer.meter.read()  # host sync, once per log line
    step, (speed, waiting) = trainer.progress.step, clock.lap()
    epoch = step / trainer.order.steps_per_epoch
    values = {"loss": loss, "lr": rate, "images_per_second": speed, "wait_share": waiting}
    report(trainer, "train", values)
    trainer.console.print(
        f"epoch {epoch:.2f}  update {step}  loss {loss:.4f}  lr {rate:.3g}  {speed:.0f} images/s  waits {waiting:.1%}"
    )
    log_meta(trainer)


def log_meta(trainer: Trainer) -> None:
    """A line for every meta step since the last call, one for what is learned now, and the alarms."""
    if trainer.meta is None:
        return
    lines = trainer.meta.log.read()
    if not lines or not trainer.accelerator.is_main_process:
        return
    for line in lines:
        trainer.folder.append("metrics.jsonl", line)
    learned = trainer.meta.learned
    summary = learned.summary() | found_errors(trainer.parts, sample_figures(learned, None))
    found = alarms(summary, trainer.meta.log, trainer.meta.validation.left_out)
    report(trainer, "learned", summary | ({"alarms": found} if found else {}))
    for alarm in found:
        trainer.console.print(f"meta step: {alarm}")


def report(trainer: Trainer, event: str, values: dict[str, Any]) -> None:
    """Writes `values` to metrics.jsonl and the trackers; main process only."""
    if not trainer.accelerator.is_main_process:
        return
    step = trainer.progress.step
    line = {"event": event, "step": step, "epoch": step / trainer.order.steps_per_epoch, **values}
    trainer.folder.append("metrics.jsonl", line)
    numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
    trainer.accelerator.log(numbers, step=step)


def evaluate_epoch(trainer: Trainer, clock: Clock) -> bool:
    """Evaluates at the end of an epoch if the recipe wants it; whether `select` was better than ever before."""
    progress, every = trainer.progress, trainer.recipe.eval.every
    epoch = progress.step // trainer.order.steps_per_epoch
    # Without a select split the test figures are shown, but nothing is chosen by them; the last ones come at the end.
    split = "select" if len(trainer.parts.splits.select) else "test"
    if not every or epoch % every or (split == "test" and progress.step == trainer.last_step):
        return False
    clock.pause()
    figures = evaluate(trainer, split)
    if split == "test" or (progress.best_top1 is not None and figures["top1"] <= progress.best_top1):
        return False
    progress.best_step, progress.best_top1 = progress.step, figures["top1"]
    return True


def evaluate(trainer: Trainer, split: str, weights: str | None = None) -> dict[str, Any]:
    """Figures of one split, written to the log; `weights` raw or ema, default the headline's."""
    weights = weights or trainer.recipe.eval.weights
    figures = {"weights": weights, **trainer.evaluator.run(trainer.weights(weights), split)}
    collect_skipped(trainer)
    report(trainer, split, figures)
    numbers = f"{split} top-1 {figures['top1']:.4f}  NLL {figures['nll']:.4f}  ({weights} weights)"
    trainer.console.print(f"epoch {trainer.progress.step / trainer.order.steps_per_epoch:.0f}  {numbers}")
    return figures


def evaluate_end(trainer: Trainer) -> dict[str, Any]:
    """Final figures of every held-out split, and of test with the weights that are not the headline's."""
    figures = {split: evaluate(trainer, split) for split in trainer.parts.held_out()}
    if trainer.ema is not None:
        other = "ema" if trainer.recipe.eval.weights == "raw" else "raw"
        figures[f"test_{other}"] = evaluate(trainer, "test", other)
    return figures | judge_samples(trainer)


def judge_samples(trainer: Trainer) -> dict[str, Any]:
    """Writes samples.csv where losses or weights of single images are known; how well they find replaced labels."""
    losses = None if trainer.sample_losses is None else trainer.sample_losses.means(trainer.accelerator)
    figures = sample_figures(None if trainer.meta is None else trainer.meta.learned, losses)
    if not figures:
        return {}
    if trainer.accelerator.is_main_process:
        write_samples(trainer.parts, figures, trainer.folder.path / "samples.csv")
    return {"samples": found_errors(trainer.parts, figures)}


def collect_skipped(trainer: Trainer) -> None:
    """Adds the damaged images that the loaders of all processes met, and names the new ones in the log."""
    met = trainer.loader.skipped | trainer.evaluator.loader.skipped
    found = merged(trainer.accelerator, met if trainer.meta is None else met | trainer.meta.validation.skipped)
    for sample, reason in found.items():
        if sample not in trainer.progress.skipped:
            trainer.progress.skipped[sample] = reason
            line = {
                "step": trainer.progress.step,
                "id": sample,
                "path": trainer.parts.name_of(sample),
                "reason": reason,
            }
            if trainer.accelerator.is_main_process:
                trainer.folder.append("skipped.jsonl", line)
            trainer.console.print(f"skipped: damaged image {line['path']}: {reason}")

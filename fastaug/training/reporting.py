"""Reporting during training: log lines, evaluations, skipped images, the table of training images."""

import math
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.class_names import shown
from fastaug.distributed import any_process, merged
from fastaug.errors import DataError, NoImageError
from fastaug.evaluation.class_table import without_details
from fastaug.evaluation.label_scores import score_of
from fastaug.evaluation.learned_labels import mended
from fastaug.evaluation.per_sample import found_errors, sample_figures, samples_table
from fastaug.evaluation.sample_file import FILE, SplitRecord, archive
from fastaug.recipe.schema import LOWER_IS_BETTER
from fastaug.reports.batch_grid import batch_grid, shown_batch
from fastaug.targets import SoftTarget
from fastaug.training.build import Trainer
from fastaug.training.model_facts import scalars
from fastaug.training.policy_files import write_policy
from fastaug.training.result import write_result
from fastaug.training.timing import Awaited, Clock, peak_memory

AUROC_IMAGES = 10_000  # of a log line's figure, whose cost grows with them; the final one is of all


def report(trainer: Trainer, event: str, values: dict[str, Any]) -> None:
    """Writes `values` to metrics.jsonl and the trackers; main process only."""
    if not trainer.accelerator.is_main_process:
        return
    step = trainer.progress.step
    line = {"event": event, "step": step, "epoch": step / trainer.order.steps_per_epoch, **values}
    trainer.folder.append("metrics.jsonl", line)
    trainer.trackers.log(event, step, values)


# ---- training ----


def log_training(trainer: Trainer, rate: float, clock: Clock) -> None:
    """One line of metrics.jsonl, the screen and the trackers."""
    loss, norm = trainer.meter.read()  # host sync, once per log line
    step, (speed, waiting) = trainer.progress.step, clock.lap()
    epoch = step / trainer.order.steps_per_epoch
    shown = norm if math.isfinite(norm) else None  # where fp16's scaler left the update out; JSON knows no infinity
    values = {"loss": loss, "grad_norm": shown, "lr": rate, "images_per_second": speed, "wait_share": waiting}
    report(trainer, "train", values)
    trainer.console.print(
        f"epoch {epoch:.2f}  update {step}  loss {loss:.4f}  gradient {norm:.3g}  lr {rate:.3g}  {speed:.0f} images/s  "
        f"waits {waiting:.1%}"
    )
    log_meta(trainer)


def log_epoch(trainer: Trainer, clock: Clock) -> None:
    """A line at the end of an epoch: its training time, and the most memory that the process has had so far."""
    report(trainer, "epoch", {"epoch_seconds": clock.epoch(), **peak_memory(trainer.accelerator.device)})


def log_meta(trainer: Trainer) -> None:
    """A line for every meta step since the last call, one for what is learned now, and the alarms."""
    lines, values, alarms = trainer.meta.report()
    if not lines or not trainer.accelerator.is_main_process:
        return
    for line in lines:
        trainer.folder.append("metrics.jsonl", line)
    values |= found_errors(trainer.parts, sample_figures(trainer.meta.learned, None), most=AUROC_IMAGES)
    report(trainer, "learned", values | ({"alarms": alarms} if alarms else {}))
    for alarm in alarms:
        trainer.console.print(f"meta step: {alarm}")


def log_batch(trainer: Trainer, batch: Batch, inputs: Tensor, target: SoftTarget, epoch: int) -> None:
    """Gives trackers of pictures the grid of a batch and writes batch.png in the run folder; main process."""
    whole = len(batch.ids) == len(inputs)  # not where blank images stand in for damaged ones
    if not (trainer.trackers.show_pictures and whole):
        return
    grid = batch_grid(*shown_batch(trainer.augment, trainer.parts.classes, batch, (inputs, target), epoch))
    file = BytesIO()
    grid.save(file, "PNG")
    trainer.folder.write("batch.png", file.getvalue())
    trainer.trackers.log_picture("batch", grid, trainer.progress.step)


def log_ids(trainer: Trainer, ids: list[Tensor], epoch: int) -> None:
    """The images of one update on this process, where run.log_ids asks for them."""
    if trainer.recipe.run.log_ids:
        line = {"step": trainer.progress.step, "epoch": epoch, "ids": torch.cat(ids).tolist()}
        trainer.folder.append(f"ids-{trainer.order.rank}.jsonl", line)


def collect_skipped(trainer: Trainer) -> None:
    """Adds the damaged images that the loaders of all processes met, and names the new ones in the log."""
    met = trainer.loader.skipped | trainer.evaluator.loader.skipped | trainer.meta.skipped()
    for sample, reason in merged(trainer.accelerator, met).items():
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
            trainer.console.print(f"skipped: damaged image {shown(trainer.parts.name_of(sample))}: {reason}")


def check_epoch(trainer: Trainer, batches: Awaited) -> None:
    """DataError when no process got one image in the epoch that ends here; a new one is counted from now on."""
    images, batches.images = batches.images, 0
    if any_process(trainer.accelerator, images > 0):
        return
    collect_skipped(trainer)
    epoch, ids = trainer.progress.step // trainer.order.steps_per_epoch, trainer.parts.splits.train
    first = next((f", the first {trainer.parts.name_of(i)}: {why}" for i, why in trainer.progress.skipped.items()), "")
    raise DataError(
        f"no image of epoch {epoch} could be decoded, of {len(ids)} to train on{first}; repair them (skipped.jsonl "
        "names each) or change data.root"
    )


# ---- held-out splits ----


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
    trainer.evaluated = {"step": progress.step, "split": split, **scalars(figures)}
    metric = trainer.metric
    value = figures[metric]
    if trainer.plateau is not None and trainer.plateau.see(-value if metric in LOWER_IS_BETTER else value, epoch):
        trainer.console.print(f"the learning rate falls to {trainer.plateau.factor:g} of optim.lr: select no better")
    if split == "test":
        return False
    if not is_better(metric, value, progress.best_value):
        progress.stale += 1
        return False
    progress.best_step, progress.best_value, progress.stale = progress.step, value, 0
    return True


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` of a figure is better than the best so far; one that is no number never is."""
    if math.isnan(value):
        return False
    return best is None or (value < best if metric in LOWER_IS_BETTER else value > best)


def evaluate(trainer: Trainer, split: str, weights: str | None = None) -> dict[str, Any]:
    """Figures of one split, written to the log; `weights` raw or ema, default the headline's."""
    figures = measure(trainer, split, weights)
    collect_skipped(trainer)
    tell(trainer, split, figures)
    return figures


def measure(
    trainer: Trainer,
    split: str,
    weights: str | None = None,
    copies: int = 0,
    record: SplitRecord | None = None,
    *,
    details: bool = False,
) -> dict[str, Any]:
    """Figures of one split by the network's `weights`; DataError when none of its images can be decoded.

    `copies`: of test-time augmentation, whose figures stand beside them. `record`, `details`: see `Evaluator.run`.
    """
    weights = weights or trainer.recipe.eval.weights
    told = [] if record is None else [record]
    found = trainer.evaluator.run(trainer.weights(weights), split, copies, told, details=details)
    return {"weights": weights, **found}


def tell(trainer: Trainer, split: str, figures: dict[str, Any]) -> None:
    """A line of metrics.jsonl, the trackers and the screen for the figures of a split."""
    report(trainer, split, without_details(figures))
    if "mean_ap" in figures:
        numbers = f"mAP {figures['mean_ap']:.4f}  F1 {figures['f1_micro']:.4f} micro, {figures['f1_macro']:.4f} macro"
    else:
        numbers = f"top-1 {figures['top1']:.4f}  NLL {figures['nll']:.4f}"
    numbers = f"{split} {numbers}  ({figures['weights']} weights)"
    trainer.console.print(f"epoch {trainer.progress.step / trainer.order.steps_per_epoch:.0f}  {numbers}")
    if (tta := figures.get("tta")) is not None:
        numbers = f"top-1 {tta['top1']:.4f}  NLL {tta['nll']:.4f}  ECE {tta['ece']:.4f}, without {figures['ece']:.4f}"
        trainer.console.print(f"    averaged over {tta['copies']} copies: {numbers}")


def evaluate_end(trainer: Trainer) -> dict[str, Any]:
    """Final figures of every held-out split, and of test with the weights that are not the headline's.

    The result is written before anything else is made of them, so that nothing that fails here can lose it; a split
    without an image is told in the end, by a NoImageError.
    """
    figures: dict[str, Any] = {}
    problems: list[NoImageError] = []
    records = {split: SplitRecord() for split in trainer.parts.held_out() if trainer.record is not None}
    final: list[tuple[str, str, str]] = [
        (split, split, trainer.recipe.eval.weights) for split in trainer.parts.held_out()
    ]
    if trainer.ema is not None:
        other = "ema" if trainer.recipe.eval.weights == "raw" else "raw"
        final.append((f"test_{other}", "test", other))
    for name, split, weights in final:
        try:
            tta, record = trainer.recipe.eval.tta, records.get(name)
            figures[name] = measure(trainer, split, weights, tta, record, details=name == split)
        except NoImageError as error:
            problems.append(error)
    collect_skipped(trainer)
    write_policy(trainer)
    write_result(trainer, figures)
    for name, split, _ in final:
        if name in figures:
            tell(trainer, split, figures[name])
    if samples := judge_samples(trainer, records):
        figures |= samples
        write_result(trainer, figures)
    if problems:
        raise problems[0]
    return figures


def judge_samples(trainer: Trainer, records: dict[str, SplitRecord]) -> dict[str, Any]:
    """Writes what is known of single images; how well it finds labels that data.labels replaced.

    samples.npz holds the statistics of all images, samples.csv the losses and weights of training images, each where
    they are kept.
    """
    losses = None if trainer.sample_losses is None else trainer.sample_losses.means(trainer.accelerator)
    figures = sample_figures(trainer.meta.learned, losses)
    main, kept = trainer.accelerator.is_main_process, {}
    if figures and main:
        trainer.folder.write("samples.csv", samples_table(trainer.parts, figures))
    if trainer.record is not None:
        kept = trainer.record.columns()
        shares = (kept[name].cpu().numpy() for name in ("probability", "other_probability"))
        kept["score"] = torch.from_numpy(score_of(*shares))
        held_out = {split: record.columns(trainer.accelerator) for split, record in records.items()}
        if main:
            trainer.folder.write(FILE, archive(trainer.parts, kept, held_out))
    found = found_errors(trainer.parts, kept | figures) | mended(trainer.parts, figures)
    return {"samples": found} if figures or kept else {}

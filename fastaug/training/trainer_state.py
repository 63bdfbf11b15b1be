"""Saving and restoring a Trainer: what checkpoints hold, and how the same command continues from the last one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from fastaug.errors import DataError, StorageError
from fastaug.training import checkpoint
from fastaug.training.build import Progress, Trainer


def save(trainer: Trainer) -> None:
    """Writes a checkpoint of this update; every process must call this, the main one writes."""
    progress = trainer.progress
    meter = trainer.meter.state()
    losses = None if trainer.sample_losses is None else trainer.sample_losses.state(trainer.accelerator)
    if not trainer.accelerator.is_main_process:
        return
    weights = {"model": trainer.network.state_dict()}
    if trainer.ema is not None:
        weights["ema"] = trainer.ema.module.state_dict()
    scaler = trainer.accelerator.scaler
    state: dict[str, Any] = {
        "position": trainer.order.position(progress.step),
        "progress": asdict(progress),
        "meter": meter,
        "data": trainer.parts.fingerprint(learns=trainer.meta.learned is not None),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "sample_losses": losses,
        "meta": trainer.meta.state_dict(),
    }
    checkpoint.save(trainer.folder.checkpoints, progress.step, weights, state)
    checkpoint.prune(trainer.folder.checkpoints, trainer.recipe.run.keep, progress.best_step)
    trainer.folder.write_status(None, "running", progress.step)


def restore(trainer: Trainer) -> None:
    """Puts the trainer where the newest sound checkpoint of its run folder is; nothing to do without one."""
    path, warnings = checkpoint.latest(trainer.folder.checkpoints)
    found = [str(path) if path else None]
    broadcast_object_list(found)  # all processes take the one that the main process found
    for warning in warnings:
        trainer.console.print(warning)
    if found[0] is not None:
        load_into(trainer, found[0])
        trainer.console.print(f"continuing from {found[0]}")
    step = trainer.progress.step
    if trainer.accelerator.is_main_process:
        for name in ("metrics.jsonl", "skipped.jsonl"):
            trainer.folder.cut_after(name, step)
    trainer.folder.cut_after(f"ids-{trainer.order.rank}.jsonl", step)


def load_into(trainer: Trainer, path: str) -> None:
    """Loads weights, optimizer and progress from the checkpoint folder `path`; DataError when the data changed."""
    weights, state = checkpoint.load(Path(path))
    if not trainer.parts.trains_as(state["data"], learns=trainer.meta.learned is not None):
        raise DataError(
            f"data.root: the images to train on, their labels or their numbers in the order of all paths are not those "
            f"that {path} was trained on; put the folder back as it was, or choose another run.dir"
        )
    load_weights(trainer.network, weights["model"])
    if trainer.ema is not None:
        load_weights(trainer.ema.module, weights["ema"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    if trainer.sample_losses is not None:
        trainer.sample_losses.restore(state["sample_losses"], trainer.accelerator.is_main_process)
    trainer.meta.load_state_dict(state["meta"])
    trainer.meter.restore(state["meter"])
    trainer.progress = Progress(**state["progress"])
    assert trainer.order.step(state["position"]) == trainer.progress.step


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads `weights` into `network`; StorageError when they are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise StorageError(f"the checkpoint's weights do not fit the network: {error}") from error

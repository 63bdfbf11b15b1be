"""Saving and restoring a Trainer: what checkpoints hold, and how the same command continues from the last one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from fastaug.data.class_names import some
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
        "data": trainer.parts.fingerprint(),
        "classes": list(trainer.parts.classes),
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
        trainer.folder.write_json("classes.json", {"classes": list(trainer.parts.classes)})  # of outputs 0, 1, ...
        for name in ("metrics.jsonl", "skipped.jsonl"):
            trainer.folder.cut_after(name, step)
    trainer.folder.cut_after(f"ids-{trainer.order.rank}.jsonl", step)


def load_into(trainer: Trainer, path: str) -> None:
    """Loads weights, optimizer and progress from the checkpoint folder `path`; DataError when the data changed."""
    weights, state = checkpoint.load(Path(path))
    check_classes(trainer, state, path)
    if state["data"] != trainer.parts.fingerprint():
        raise DataError(
            f"data.root: the images are not those that {path} was trained on; put them back, or choose another run.dir"
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


def check_classes(trainer: Trainer, state: dict[str, Any], path: str) -> None:
    """DataError when the classes have other names, or another order, than those the outputs were trained on."""
    trained = class_names(state)
    if trained is None:
        trainer.console.print(f"{path} is of a version that kept no class names: they are taken to be those of now")
    elif trained != trainer.parts.classes:
        now = trainer.parts.classes
        lost, new = (some(names) or "none" for names in (set(trained) - set(now), set(now) - set(trained)))
        raise DataError(
            f"data.root: {path} was trained on the {len(trained)} classes {some(trained)}, and there are now "
            f"{len(now)}: {some(now)}; no longer there: {lost}; new: {new}; name the folders as they were, or choose "
            "another run.dir"
        )


def class_names(state: dict[str, Any]) -> tuple[str, ...] | None:
    """The classes of a checkpoint's outputs; None in checkpoints of 0.1.0."""
    return None if state.get("classes") is None else tuple(state["classes"])


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads `weights` into `network`; StorageError when they are another network's."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise StorageError(f"the checkpoint's weights do not fit the network: {error}") from error

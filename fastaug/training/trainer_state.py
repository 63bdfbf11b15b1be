"""Saving and restoring a Trainer: what checkpoints hold, and how the same command continues from the last one."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from fastaug.data.class_names import some
from fastaug.errors import DataError, RecipeError, StorageError
from fastaug.training import checkpoint
from fastaug.training.build import Progress, Trainer
from fastaug.training.checkpoint_writer import Snapshot
from fastaug.training.model_facts import FILE, facts_file
from fastaug.training.policy_files import policy_texts
from fastaug.training.run_folder import RunFolder
from fastaug.training.sharded_state import is_stored_in_shares, optimizer_values, take, tensors_of
from fastaug.training.share_files import write_shares
from fastaug.training.starts import FILE as STARTS
from fastaug.training.starts import this_start
from fastaug.training.table_files import Table


def save(trainer: Trainer) -> None:
    """Writes a checkpoint of this update, or begins to; every process must call this, the main one writes.

    With train.parallel=fsdp2 each writes its share of what is divided over them. The texts of the policy are made here,
    as training changes what they are of: an error in them comes before anything is written.
    """
    progress, shares = trainer.progress, is_stored_in_shares(trainer)
    meter = trainer.meter.state()
    losses = None if trainer.sample_losses is None else trainer.sample_losses.state(trainer.accelerator)
    record = None if trainer.record is None else trainer.record.state()
    write = partial(write_shares, tensors=tensors_of(trainer), accelerator=trainer.accelerator) if shares else None
    if not trainer.accelerator.is_main_process:
        if write is not None:
            write(checkpoint.unfinished(trainer.folder.checkpoints, progress.step), lambda: None)
        return
    weights = {} if shares else {"model": trainer.network.state_dict()}
    if trainer.ema is not None and not shares:
        weights["ema"] = trainer.ema.module.state_dict()
    scaler = trainer.accelerator.scaler
    state: dict[str, Any] = {
        "position": trainer.order.position(progress.step),
        "progress": asdict(progress),
        "meter": meter,
        "data": trainer.parts.fingerprint(learns=trainer.meta.learned is not None),
        "classes": list(trainer.parts.classes),
        "optimizer": optimizer_values(trainer) if shares else trainer.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "sample_losses": losses,
        "sample_record": record,
        "meta": trainer.meta.state_dict(),
        "plateau": None if trainer.plateau is None else trainer.plateau.state_dict(),
        "lines": trainer.folder.lines(),
        "skipped_paths": {sample: trainer.parts.name_of(sample) for sample in progress.skipped},
    }
    snapshot = Snapshot(
        step=progress.step,
        best_step=progress.best_step,
        weights=weights,
        state=state,
        tables=tables_apart(trainer, state["meta"]),
        texts={FILE: facts_file(trainer)},
        policy=policy_texts(trainer),
    )
    trainer.writer.save(snapshot, partial(write_snapshot, trainer.folder, trainer.recipe.run.keep, shares=write))


def write_snapshot(folder: RunFolder, keep: int, taken: Snapshot, shares: checkpoint.WriteShares | None) -> None:
    """Writes a checkpoint and what of the run folder goes with it, each once all before it is there; `shares` too."""
    folder.sync_logs()
    checkpoint.save(folder.checkpoints, taken.step, taken.weights, taken.state, taken.tables, taken.texts, shares)
    checkpoint.prune(folder.checkpoints, keep, taken.best_step)
    for name, text in taken.policy.items():
        folder.write(name, text)
    folder.finished = False
    folder.write_status(None, "running", taken.step)


def tables_apart(trainer: Trainer, meta: dict[str, Any]) -> dict[str, Table]:
    """The learned tables, whose rows are taken out of the state `meta`: they get files of their own."""
    if trainer.meta.learned is None:
        return {}
    tables = {name: Table(*found) for name, found in trainer.meta.learned.stored_tables().items()}
    apart = {own for table in tables.values() for own in table.rows}
    meta["learned"] = {own: value for own, value in meta["learned"].items() if own not in apart}
    return tables


def mark_changed(trainer: Trainer, changed: dict[str, Tensor]) -> None:
    """Tells the tables which of their rows are not those of their files; all of one that has none yet."""
    if trainer.meta.learned is not None:
        for name, (_, mask) in trainer.meta.learned.stored_tables().items():
            mask.zero_()
            mask[changed.get(name, slice(None))] = True


def restore(trainer: Trainer) -> None:
    """Puts the trainer where the newest sound checkpoint of its run folder is; nothing to do without one.

    The main process finds it, by loading it, and cuts back what killed runs wrote behind it; all others load the same.
    """
    accelerator, folder = trainer.accelerator, trainer.folder
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = _load_newest(trainer)
        except (DataError, RecipeError, StorageError) as error:
            found[1] = error
    broadcast_object_list(found)
    path, problem = found
    if problem is not None:
        raise problem
    if path is not None and not accelerator.is_main_process:
        load_into(trainer, path)
    if accelerator.is_main_process:
        folder.write_json("classes.json", {"classes": list(trainer.parts.classes)})  # of outputs 0, 1, ...
    if accelerator.is_main_process and not trainer.ended:
        folder.finished = False
        folder.append(STARTS, this_start(accelerator, trainer.progress.step))
        folder.write_status(None, "running", trainer.progress.step)


def _load_newest(trainer: Trainer) -> str | None:
    """Continues from the newest checkpoint that can be loaded, names those passed over; StorageError if none can."""
    folder, say = trainer.folder, trainer.console.print
    candidates, lines, newest = checkpoint.newest_first(folder.checkpoints), None, None
    problems = []
    for path in candidates:
        try:
            lines = load_into(trainer, str(path))
        except checkpoint.OutOfReachError:
            raise  # it may be sound: another start can have it
        except StorageError as error:
            problems.append(str(error))
            say(f"passed over: {error}")
            continue
        newest = path
        say(f"continuing from {path}")
        checkpoint.settle(path, trainer.recipe.run.keep, trainer.progress.best_step)
        break
    if candidates and newest is None:
        raise StorageError(
            f"{folder.checkpoints}: none of the {len(candidates)} checkpoints can be loaded. {problems[0]}; delete "
            "all of them, and result.json, to start anew, or choose another run.dir"
        )
    for name in folder.cut_after(trainer.progress.step, lines):
        say(f"{name}: lines that cannot be read were dropped")
    return None if newest is None else str(newest)


def load_into(trainer: Trainer, path: str) -> dict[str, int] | None:
    """Loads weights, optimizer and progress from the checkpoint folder `path`; the lines of the logs at that time.

    StorageError when it is damaged, or not of this run; DataError when the data changed.
    """
    weights, state = checkpoint.load(Path(path), whole=False)
    try:
        return _take(trainer, path, weights, state)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        kind = f"{type(error).__name__}: {error}"
        raise StorageError(
            f"{path}: does not hold the state of this run ({kind}); delete it to continue from an older one"
        ) from error


def _take(trainer: Trainer, path: str, weights: checkpoint.Weights, state: dict[str, Any]) -> dict[str, int] | None:
    check_classes(trainer, state, path)
    if not trainer.parts.trains_as(state["data"], learns=trainer.meta.learned is not None):
        raise DataError(
            f"data.root: the images to train on, their labels or their numbers in the order of all paths are not those "
            f"that {path} was trained on; put the folder and the files of data.table, data.class_map and data.labels "
            "back as they were, or choose another run.dir"
        )
    _take_weights(trainer, path, weights, state["optimizer"])
    if trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    if trainer.sample_losses is not None:
        trainer.sample_losses.restore(state["sample_losses"], trainer.accelerator.is_main_process)
    if trainer.record is not None and (record := state.get("sample_record")) is not None:
        trainer.record.restore(record)
    elif trainer.record is not None:
        trainer.console.print(f"{path} is of a version that kept no statistics of single images: they begin here")
    if trainer.plateau is not None:
        trainer.plateau.load_state_dict(state["plateau"])
    trainer.meta.load_state_dict(state["meta"])
    mark_changed(trainer, state["changed_rows"])
    trainer.meter.restore(state["meter"])
    began = {"epoch_began": state["progress"]["train_seconds"]}  # unknown to older versions: counted from here
    stored = dict(state["progress"])
    if "best_top1" in stored:  # older versions knew no other figure
        stored["best_value"] = stored.pop("best_top1")
    progress = Progress(**began | stored)
    if trainer.order.step(state["position"]) != progress.step or checkpoint.name_of(progress.step) != Path(path).name:
        raise ValueError(f"it is of update {progress.step}, at position {state['position']}")
    progress.skipped = skipped_now(trainer, progress.skipped, state.get("skipped_paths"))
    trainer.progress = progress
    lines: dict[str, int] | None = state.get("lines")  # 0.1.0 did not count them
    return lines


def _take_weights(trainer: Trainer, path: str, weights: checkpoint.Weights, optimizer: dict[str, Any]) -> None:
    """Puts weights, moving average and optimizer where they were."""
    if is_stored_in_shares(trainer):
        take(trainer, Path(path), optimizer)
        return
    load_weights(trainer.network, weights["model"])
    if trainer.ema is not None:
        load_weights(trainer.ema.module, weights["ema"])
    trainer.optimizer.load_state_dict(optimizer)


def skipped_now(trainer: Trainer, skipped: dict[int, str], paths: dict[int, str] | None) -> dict[int, str]:
    """Damaged images by the ids of now: images that are only evaluated may have come or gone, and moved them."""
    index, name_of = trainer.parts.index, trainer.parts.name_of
    if paths is None or index is None or all(i < len(index) and name_of(i) == path for i, path in paths.items()):
        return skipped
    now = {name_of(i): i for i in range(len(index))}
    return {now[paths[i]]: reason for i, reason in skipped.items() if paths[i] in now}


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

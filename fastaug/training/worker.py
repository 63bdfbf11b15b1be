"""One process of a run, from the resolved recipe to its exit code: whatever happens, status.json says how it ended."""

import os
import traceback
from typing import Any

import torch

from fastaug.console import Console
from fastaug.data.class_names import some
from fastaug.data.shards.layout import ShardIndex
from fastaug.distributed import build_accelerator
from fastaug.errors import EXIT_DONE, FastaugError, NonFiniteError, PeerError, StorageError
from fastaug.provenance import commit, versions
from fastaug.recipe.reading import flat
from fastaug.recipe.schema import Recipe
from fastaug.training.build import Trainer, assemble
from fastaug.training.loop import fit
from fastaug.training.run_folder import RunFolder
from fastaug.training.signals import StopRequest


def run(recipe: Recipe) -> int:
    """Trains and writes result.json; the exit code of the process."""
    assert recipe.run.dir is not None
    folder = RunFolder(recipe.run.dir)
    ending = Ending(folder)
    with StopRequest() as stop, ending:
        given, recipe = recipe, folder.as_begun(recipe)
        if os.environ.get("RANK", "0") == "0":  # the main process, before it is known whether the others come
            folder.open(recipe)
            folder.write_status(None, "starting", 0)
        accelerator = build_accelerator(recipe)
        console = Console(accelerator.is_main_process)
        if recipe != given:
            console.print("goes on with optim.warmup_prefix=false, as this run was begun by an earlier version")
        accelerator.wait_for_everyone()
        trainer = assemble(recipe, accelerator, folder, console)
        ending.trainer = trainer
        accelerator.init_trackers("fastaug", config=flat(recipe))
        describe(trainer)
        figures = fit(trainer, stop)
        if accelerator.is_main_process:
            finish(trainer, figures)
        accelerator.end_training()
    return ending.code


class Ending:
    """Context manager that turns every exception into an exit code, one message and status.json."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.trainer: Trainer | None = None
        self.code = EXIT_DONE

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        reason = "done"
        if isinstance(error, KeyboardInterrupt):  # the second Ctrl-C
            self.code, reason = 1, "interrupted before the state was saved"
        elif error is not None:
            if not isinstance(error, Exception):
                return False
            error = translated(error)
            self.code = error.code if isinstance(error, FastaugError) else 1
            reason = str(error) or type(error).__name__
            if not isinstance(error, FastaugError):
                traceback.print_exception(error)
            Console(True).print(f"stopped with code {self.code}: {reason}")
        rank = os.environ.get("RANK", "0")
        if self._folder.locked or (rank != "0" and error is not None):
            try:
                step = self.trainer.progress.step if self.trainer else 0
                name = "status.json" if self._folder.locked else f"status-{rank}.json"
                self._folder.write_status(self.code, reason, step, name)
            except OSError as failure:
                Console(True).print(f"status.json cannot be written: {failure}")
        self._folder.close()
        return True


def translated(error: Exception) -> Exception:
    """`error`, or what it means when a library raised it."""
    text = str(error) or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in text:
        return FastaugError(f"out of memory: {text.splitlines()[0]}; raise train.accumulate or lower data.img_size")
    if isinstance(error, torch.distributed.DistError) or "gloo" in text.lower() or "Connection closed by peer" in text:
        return PeerError(f"another process of the job is gone or does not answer: {text.splitlines()[0]}")
    if isinstance(error, OSError):
        return StorageError(f"a file cannot be read or written: {text}; free space or choose another run.dir")
    if "device-side assert" in text:
        return NonFiniteError("a check on the device failed, most likely a loss that is not finite; see the log above")
    return error


def describe(trainer: Trainer) -> None:
    """Says what is about to run."""
    recipe, splits = trainer.recipe, trainer.parts.splits
    sizes = ", ".join(f"{len(splits.of(role))} {role}" for role in ("train", "meta", "select", "test"))
    trainer.console.print(
        f"{recipe.model.name}, {len(trainer.parts.classes)} classes, {sizes}; {trainer.last_step} updates of "
        f"{recipe.train.batch_size} on {trainer.accelerator.num_processes} x {trainer.accelerator.device.type}"
    )
    trainer.console.print(f"classes: {some(trainer.parts.classes)}")
    for role, names in trainer.parts.unseen_classes().items():
        trainer.console.print(f"warning: {role} has no readable image of {len(names)} classes: {some(names)}")


def finish(trainer: Trainer, figures: dict[str, dict[str, Any]]) -> None:
    """Writes result.json and prints the summary."""
    progress, recipe = trainer.progress, trainer.recipe
    headline = {name: figures["test"][name] for name in ("top1", "top5", "nll", "ece", "ece_bins", "weights")}
    best = {"step": progress.best_step, "select_top1": progress.best_top1} if progress.best_step else None
    speed = progress.images_seen / progress.train_seconds
    result = {
        **headline,
        "checkpoint": "last",
        "test": figures["test"],
        "select": figures.get("select"),
        **{name: value for name, value in figures.items() if name not in ("test", "select")},
        "best": best,
        "images_per_second": speed,
        "train_seconds": progress.train_seconds,
        "images_seen": progress.images_seen,
        "skipped_images": len(progress.skipped),
        "loader": recipe.data.loader,
        "source": source(trainer),
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "versions": versions(),
        "commit": commit(),
    }
    trainer.folder.write_json("result.json", result)
    rows = {f"test {name}": f"{headline[name]:.4f}" for name in ("top1", "top5", "nll", "ece")}
    rows |= {
        "images/s": f"{speed:.0f}",
        "training": f"{progress.train_seconds:.1f} s",
        "skipped": str(len(progress.skipped)),
    }
    trainer.console.summary(f"{trainer.folder.path} ({headline['weights']} weights, last checkpoint)", rows)


def source(trainer: Trainer) -> str:
    """Where the pixels of a run came from."""
    index = trainer.parts.index
    if index is None:
        return "random pixels"
    stored = index.settings.format if isinstance(index, ShardIndex) else "files"
    what = {"raw": "raw pixels of shards, read", "jpeg": "encoded files in shards, decoded by DALI"}
    when = "once and kept in memory" if trainer.recipe.data.loader == "resident" else "for every batch"
    return f"{what.get(stored, 'encoded files, decoded by DALI')} {when}"

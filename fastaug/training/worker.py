"""One process of a run, from the resolved recipe to its exit code: whatever happens, status.json says how it ended."""

import os
from contextlib import nullcontext

from fastaug.console import Console
from fastaug.data.class_names import some
from fastaug.distributed import Peers, build_accelerator, check_launch, finish
from fastaug.recipe.schema import Recipe
from fastaug.training.build import Trainer, assemble
from fastaug.training.ending import Ending
from fastaug.training.late_processes import Watch
from fastaug.training.listeners import Listeners
from fastaug.training.loop import fit
from fastaug.training.result import summarise
from fastaug.training.run_folder import RunFolder
from fastaug.training.signals import StopRequest
from fastaug.training.starts import check_same_start


def run(recipe: Recipe, *, quiet: bool = False) -> int:
    """Trains and writes result.json; the exit code of the process. `quiet`: says nothing but why it failed."""
    return attempt(recipe, Listeners(), quiet=quiet).code


def attempt(recipe: Recipe, listeners: Listeners, *, borrowed: bool = False, quiet: bool = False) -> Ending:
    """Trains and writes result.json; how it ended, which is on the screen too unless the process is `borrowed`."""
    assert recipe.run.dir is not None
    folder = RunFolder(recipe.run.dir, listeners.hear)
    ending = Ending(folder, tells=not borrowed)
    with StopRequest(listeners.reason) as stop, ending:
        check_launch()
        with nullcontext() if borrowed else stop.at_once(ending.leave):
            trainer = start(recipe, folder, ending, quiet=quiet)
        ending.trainer = trainer
        describe(trainer)
        assert ending.peers is not None
        rank = trainer.accelerator.process_index
        screen = Console(not quiet) if rank else trainer.console  # the main one's has the bar
        watch = Watch(trainer.pulse, ending.peers.hosts, rank, screen)
        with trainer.trackers, watch, trainer.writer:
            ending.figures = fit(trainer, stop)
        summarise(trainer, ending.figures["test"])
        finish(trainer.accelerator, stays_joined=borrowed)
    ending.interrupted = stop.interrupted
    ending.trainer = None  # it holds network and data, and whoever asks how it ended needs neither
    return ending


def start(given: Recipe, folder: RunFolder, ending: Ending, *, quiet: bool) -> Trainer:
    """Opens the run folder, meets the other processes and builds what is trained."""
    recipe = given
    if os.environ.get("RANK", "0") == "0":  # the main process, before it is known whether the others come
        recipe = folder.open(given)
        if not folder.finished:
            folder.write_status(None, "starting", folder.step)
    accelerator = build_accelerator(recipe)
    ending.peers = Peers(accelerator, min(10, recipe.run.peer_timeout))
    console = Console(accelerator.is_main_process and not quiet)
    accelerator.wait_for_everyone()
    if not folder.locked:  # of another process, which has checked its files
        recipe = folder.as_begun(given)
    check_same_start(recipe, accelerator, ending.peers.hosts)
    if recipe != given:
        console.print("goes on with optim.warmup_prefix=false, as this run was begun by an earlier version")
    return assemble(recipe, accelerator, folder, console)


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

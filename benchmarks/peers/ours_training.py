"""fastaug's training: the step of its loop, on the loader's batches, on one batch again and again, or no step."""

import os
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

from benchmarks.peers.job import Job, Steps
from benchmarks.peers.ours import recipe_of
from fastaug.batch import Batch
from fastaug.console import Console
from fastaug.distributed import build_accelerator
from fastaug.training.build import assemble
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder


def steps(job: Job) -> Steps:
    """`train` is a training step of a run, `load` its next batch alone, `compute` the step on a batch at hand."""
    place = Path(os.environ["FASTAUG_CACHE"]) / f"run-{os.getpid()}"  # goes with the data of the benchmark
    place.mkdir(parents=True)
    recipe = recipe_of(job, f"model.name={job.model}", f"run.dir={place}")
    folder = RunFolder(place)
    trainer = assemble(recipe, build_accelerator(recipe), folder, Console(False))
    batches = trainer.loader.batches(trainer.order.requests(0, trainer.last_step))
    at_hand = repeat(next(batches))

    def train(source: Iterator[Batch]) -> int:
        images = trainer.order.size(trainer.progress.step)
        train_step(trainer, source)
        if trainer.progress.step % recipe.run.log_every == 0:
            trainer.meter.read()  # the host sync of a log line
        return images

    def load() -> int:
        batch = next(batches)
        return len(batch.ids)

    return {"train": lambda: train(batches), "load": load, "compute": lambda: train(at_hand)}

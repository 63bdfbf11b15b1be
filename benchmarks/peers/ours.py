"""fastaug's loader, opened as a training run opens it: recipe, data, order, loader."""

from pathlib import Path
from typing import Any

import fastaug
from benchmarks.peers.job import Job, Stream
from fastaug.data.sampler import Order
from fastaug.distributed import build_accelerator
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe
from fastaug.training.build_data import find_data, training_loader

RECIPE = Path(__file__).with_name("recipe.yaml")


def recipe_of(job: Job, *overrides: str) -> Recipe:
    """The recipe of a job on `job.source`, a folder of images or of shards with train and val."""
    own = [
        f"data.root={job.source}",
        f"data.threads={job.threads}",
        f"data.img_size={job.side}",
        f"data.scale={list(job.scale)}",
        f"data.ratio={list(job.ratio)}",
        f"train.batch_size={job.batch}",
    ]
    return read_recipe(str(RECIPE), [*own, *overrides])


def stream(job: Job) -> Stream:
    """Batches in the keyed order, with labels and ids."""
    recipe = recipe_of(job)
    accelerator = build_accelerator(recipe)
    parts = find_data(recipe, accelerator)
    order = Order(ids=parts.splits.train, seed=recipe.run.seed, batch_size=job.batch)
    loader = training_loader(recipe, accelerator, parts, order)
    last = order.steps_per_epoch if job.once else recipe.train.epochs * order.steps_per_epoch
    for batch in loader.batches(order.requests(0, last)):
        yield batch.images, batch.labels, batch.ids


def standalone_stream(job: Job) -> Stream:
    """The same batches from `fastaug.loader`, as somebody else's loop asks for them."""
    settings: dict[str, Any] = {"img_size": job.side, "scale": job.scale, "ratio": job.ratio, "threads": job.threads}
    loader = fastaug.loader(job.source, job.batch, device="cpu", **settings)
    for batch in job.epochs(loader):
        yield batch.images, batch.labels, batch.ids

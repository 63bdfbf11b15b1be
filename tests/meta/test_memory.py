"""Memory of a process over a thousand meta steps."""

import gc
import os

import numpy as np
import psutil
import pytest

from fastaug.console import Console
from fastaug.distributed import build_accelerator
from fastaug.recipe.reading import read_recipe
from fastaug.training import build as assembly
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder

RECIPE = """
data: {img_size: 20, crop: whole, loader: resident, threads: 1}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 1000, batch_size: 8}
augment: {shift: 0.2, cutmix: 1.0, smoothing: 0.1}
meta: {every: 1, batch_size: 6, half_life: 5}
"""
STEPS, WARM, EVERY = 1000, 200, 20
GROWTH = 4.0  # MiB over all steps; one forgotten copy of the network's gradient a step would be 400


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "keys",
    [
        ["meta.learn=[policy,softness,smoothing,weights,optim]", "meta.probabilities=score"],
        ["meta.learn=[instant_weights,instant_labels]", "meta.fraction=1", "meta.engine=fused"],
        ["meta.learn=[softness,weights]", "meta.engine=implicit"],
        [
            "meta.learn=[policy,softness,weights,optim]",
            "meta.probabilities=score",
            "meta.steps=3",
            "meta.every=3",
            "meta.fraction=1",
        ],
        [
            *(
                "meta.learn=[policy,optim]",
                "meta.probabilities=score",
                "meta.steps=3",
                "meta.every=3",
                "meta.fraction=1",
                "augment.cutmix=0",
            ),
            *("augment.copies=2", "optim.opt=sgd"),  # through higher
        ],
    ],
    ids=["everything", "instant", "implicit", "unrolled", "copies"],
)
def test_memory_is_flat(tmp_path, jpeg_folder, keys):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    root = jpeg_folder(splits=("train", "meta", "test"))
    recipe = read_recipe(tmp_path / "recipe.yaml", [f"data.root={root}", f"run.dir={tmp_path / 'run'}", *keys])
    trainer = assembly.assemble(recipe, build_accelerator(recipe), RunFolder(recipe.run.dir), Console(False))
    trainer.progress.step = 1  # update 0 logs pictures
    batches = trainer.loader.batches(trainer.order.requests(1, trainer.last_step))
    process, resident = psutil.Process(os.getpid()), []
    for step in range(STEPS + WARM):
        train_step(trainer, batches)
        if step >= WARM and step % EVERY == 0:
            trainer.meta.log.read()  # as every log line does
            gc.collect()
            resident.append(process.memory_info().rss / 2**20)
    steps = trainer.recipe.meta.steps
    assert trainer.meta.validation.renewals == (STEPS + WARM) // steps - (steps > 1)  # the first window lacks update 0
    slope = np.polyfit(np.arange(len(resident)), resident, 1)[0] / EVERY
    print(f"{slope * STEPS:.2f} MiB in {STEPS} steps")
    assert slope * STEPS < GROWTH

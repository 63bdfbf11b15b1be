"""Training under bf16 on images that the op has rounded already: the same, bit for bit, as on float32 images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.console import Console
from fastaug.recipe.reading import read_recipe
from fastaug.training.build import assemble
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder

RECIPE = """
data: {img_size: 32, threads: 1, test_fraction: 0.25}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 4, batch_size: 8, precision: bf16}
augment: {shift: 0.3, cutmix: 1.0, reprob: 0.5, remode: pixel}
"""
META = ["data.meta_fraction=0.3", "meta.batch_size=8", "meta.every=1", "meta.fraction=1"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], marks=pytest.mark.slow),
        pytest.param([*META, "meta.learn=[policy,softness]", "meta.probabilities=score"], marks=pytest.mark.slow),
        pytest.param([*META, "meta.learn=[instant_weights]"], marks=pytest.mark.slow),
        [*META, "meta.learn=[softness]", "meta.engine=fused"],
    ],
    ids=["plain", "after", "instant", "fused"],
)
def test_rounded_images_train_as_float32_ones(
    tmp_path: Path, jpeg_folder: Callable[..., Path], words: list[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    root, found = jpeg_folder(images=24), []
    for dtype in (torch.bfloat16, torch.float32):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        recipe = read_recipe(tmp_path / "recipe.yaml", [f"data.root={root}", f"run.dir={tmp_path / 'run'}", *words])
        accelerator = Accelerator(cpu=True, mixed_precision=recipe.train.precision)
        trainer = assemble(recipe, accelerator, RunFolder(tmp_path / "run"), Console(False))
        assert trainer.augment.dtype == torch.bfloat16
        trainer.augment.dtype = dtype
        batches = trainer.loader.batches(trainer.order.requests(0, 3))
        for _ in range(3):
            train_step(trainer, batches)
        found.append(torch.cat([weight.flatten() for weight in trainer.network.state_dict().values()]))
    assert torch.equal(*found)

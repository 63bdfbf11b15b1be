"""The plain step: what it trains on, what it leaves to the meta step and the average, and what it is refused with."""

import copy

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe
from fastaug.training import loop
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 20, crop: center, loader: resident, threads: 1, test_fraction: 0.2}
model: {name: test_resnet, ema: true, ema_decay: 0.5}
optim: {opt: momentum, lr: 0.1, momentum: 0, weight_decay: 0, sched: constant}
train: {epochs: 1, batch_size: 16, plain_step: true}
augment: {hflip: 0.5, shift: 0.2, smoothing: 0.1}
eval: {every: 0}
"""


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def copied(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def test_it_is_a_step_on_the_decoded_images_behind_the_average(jpeg_folder, tmp_path, monkeypatch):
    seen = []
    plain_step = loop.plain_step

    def watched(trainer, batch, images):
        before, reference = copied(trainer.network), copy.deepcopy(trainer.network)
        average = copied(trainer.ema.module)
        plain_step(trainer, batch, images)
        inputs = trainer.augment.evaluation(batch)
        torch.nn.functional.cross_entropy(reference(inputs), batch.labels).backward()
        with torch.no_grad():
            for weight in reference.parameters():
                weight -= 0.1 * weight.grad
        for name, value in copied(reference).items():
            torch.testing.assert_close(trainer.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        assert all(weight.grad is None for weight in trainer.network.parameters())
        seen.append((images, before, average, copied(trainer.ema.module)))

    monkeypatch.setattr(loop, "plain_step", watched)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    keys = [f"data.root={jpeg_folder(images=24)}", f"run.dir={tmp_path / 'run'}"]
    assert run(read_recipe(tmp_path / "recipe.yaml", keys)) == 0
    assert len(seen) >= 2
    for images, before, average, after in seen[1:]:  # the first one starts the average
        assert images <= 16
        assert all(torch.equal(average[name], after[name]) for name in average)  # the plain step is not averaged
        assert any((average[name] != before[name]).any() for name in average)


@pytest.mark.parametrize(
    "keys", [["train.accumulate=2"], ["meta.learn=[augmenter]", "meta.steps=2", "meta.every=2", "meta.fraction=1"]]
)
def test_more_than_one_micro_batch_or_an_unrolled_window_is_refused(tmp_path, keys):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"train\.plain_step: takes one micro-batch"):
        read_recipe(tmp_path / "recipe.yaml", ["data.root=x", *keys])

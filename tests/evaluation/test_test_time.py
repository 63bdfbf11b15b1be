"""Test-time augmentation: means over copies that are functions of seed, id and number, in runs and by the tool."""

import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import nn

from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.evaluation.test_time import TestTimeAugmentation
from fastaug.meta.learned_part import Setting
from fastaug.meta.parameters import build_parts
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Augment, Data, Meta, Recipe
from fastaug.training.worker import run

REPO = Path(__file__).resolve().parents[2]
SGD = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
RECIPES = {
    "fixed": Recipe(data=Data(img_size=16), augment=Augment(aa="rand-m9-n2-mstd0.5")),
    "learned": Recipe(data=Data(img_size=16), meta=Meta(learn=["policy"])),
}


def averaging(name: str, copies: int) -> TestTimeAugmentation:
    recipe = RECIPES[name]
    learned = build_parts(Setting(recipe, 40, 3, SGD, torch.device("cpu"))) if recipe.meta.learn else None
    return TestTimeAugmentation(recipe, BatchAugment(recipe, 3, learned=learned), copies)


def batch(ids: list[int]) -> Batch:
    numbers = torch.tensor(ids)
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=g)
    return Batch(images[numbers], numbers % 3, numbers, numbers)


@pytest.mark.parametrize("name", RECIPES)
@torch.no_grad()
def test_the_mean_probability_of_copies_that_are_the_same_in_any_batch(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    averaged = averaging(name, copies=3)
    whole = averaged.logits(network, batch(list(range(12))), classes=3)
    apart = [averaged.logits(network, batch(ids), classes=3) for ids in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11])]
    torch.testing.assert_close(torch.cat(apart), whole)
    by_copy = [averaged.images(batch(list(range(12))), copy) for copy in (1, 2, 3)]
    assert all((one != other).flatten(1).any(1).sum() >= 6 for one, other in pairwise(by_copy))
    mean = torch.stack([network(images)[:, :3].softmax(1) for images in by_copy]).mean(0)
    torch.testing.assert_close(whole.exp().float(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.exp().sum(1), torch.ones(12, dtype=torch.float64))


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_a_run_and_the_tool_give_the_same_figures_under_what_was_learned(tmp_path, photos, monkeypatch) -> None:
    draw = np.random.default_rng(0)
    for name, photo in zip(("flower", "temple"), photos, strict=True):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            y, x = draw.integers(0, 300, 2)
            Image.fromarray(photo[y : y + 16, x : x + 16]).save(tmp_path / "images" / name / f"{i:02}.png")
    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(f"""
data: {{root: {tmp_path / "images"}, img_size: 16, crop: whole, loader: resident, test_fraction: 0.3,
  meta_fraction: 0.25}}
model: {{name: test_resnet}}
train: {{epochs: 1, batch_size: 8}}
meta: {{learn: [policy, weights, optim], probabilities: score, every: 1, batch_size: 4, policy_lr: 0.5}}
eval: {{tta: 4}}
run: {{dir: {folder}}}
""")
    assert run(read_recipe(tmp_path / "recipe.yaml", [])) == 0
    result = json.loads((folder / "result.json").read_text())
    assert (result["test"]["tta"]["copies"], result["test"]["tta"]["images"]) == (4, result["test"]["images"])
    assert result["test"]["tta"]["nll"] != result["test"]["nll"]
    _reset()
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # whose first entry the tool replaces
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(folder), "--json", str(file)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPO / "tools" / "evaluate.py"), run_name="__main__")
    assert not end.value.code
    found = json.loads(file.read_text())["figures"]
    for name in ("top1", "nll", "ece", "f1_macro"):
        assert found["tta"][name] == pytest.approx(result["test"]["tta"][name], abs=1e-7)
        assert found[name] == pytest.approx(result["test"][name], abs=1e-7)


def _reset() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()

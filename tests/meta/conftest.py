"""Real runs on a small folder of photographs, for the tests of the meta step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 20, crop: rrc, threads: 1, test_fraction: 0.2, meta_fraction: 0.25}
model: {name: test_resnet, drop: 0.2}
optim: {opt: sgd, lr: 0.02, clip_grad: 1.0}
train: {epochs: 2, batch_size: 8}
augment: {hflip: 0.5, shift: 0.2, cutmix: 1.0, smoothing: 0.1}
meta: {every: 2, fraction: 0.5, batch_size: 6, engine: forward}
eval: {every: 0}
run: {log_every: 1, log_losses: true}
"""


def fresh_accelerator() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(autouse=True)
def _fresh_accelerator_after_each() -> Iterator[None]:
    """Every test may start runs of its own."""
    yield
    fresh_accelerator()


@pytest.fixture
def train(tmp_path: Path, photos: list[np.ndarray]) -> Callable[..., Path]:
    """train(name, "key=value", ...) -> run folder; a training set of 24 images of two classes, 8 of meta, 8 of test."""
    draw = np.random.default_rng(0)
    for name, photo in zip(("flower", "temple"), photos, strict=True):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            y, x = draw.integers(0, 300, 2)
            Image.fromarray(photo[y : y + 30, x : x + 30]).save(tmp_path / "images" / name / f"{i:02}.png")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(name: str, *overrides: str, code: int = 0) -> Path:
        folder = tmp_path / name
        settings = [f"data.root={tmp_path / 'images'}", f"run.dir={folder}", *overrides]
        assert run(read_recipe(tmp_path / "recipe.yaml", settings)) == code, (folder / "status.json").read_text()
        fresh_accelerator()
        return folder

    return start


def lines(folder: Path, event: str) -> list[dict]:
    """The lines of one kind in a run's log."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line["event"] == event]


def last(folder: Path) -> tuple[dict, dict]:
    """Weights and state of a run's last checkpoint."""
    weights, state = checkpoint.load(checkpoint.newest_first(folder / "checkpoints")[0])
    return weights["model"], state


def assert_same(one, other):
    """Equal to the bit, through dictionaries and lists."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    else:
        assert one == other

"""From a recipe to loaders: who gets the fixed policy, and that it changes with nothing but seed, epoch and image."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import Order, Request
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe
from fastaug.seeding import Key, Stream
from fastaug.training.build_data import evaluation_loader, find_data, fixed_policy, meta_loader, training_loader

RECIPE = """
run: {seed: 3}
data: {img_size: 32, threads: 1, test_fraction: 0.2, meta_fraction: 0.2}
"""
POLICY = ["augment.aa=ta_wide", "augment.color_jitter=0.4"]
MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def make_recipe(tmp_path: Path, jpeg_folder: Callable[..., Path]) -> MakeRecipe:
    """make_recipe("key=value", ...): a recipe of 40 images of two classes."""
    root = jpeg_folder(classes=2, images=20)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return lambda *words: read_recipe(tmp_path / "recipe.yaml", [f"data.root={root}", *words])


def loaders(recipe: Recipe, world: int = 1, rank: int = 0) -> tuple[Loader, Loader, Loader, Order]:
    accelerator = Accelerator(cpu=True)
    parts = find_data(recipe, accelerator)
    order = Order(parts.splits.train, recipe.run.seed, 12, world=world, rank=rank)
    train = training_loader(recipe, accelerator, parts, order)
    tested = evaluation_loader(recipe, accelerator, parts, parts.splits.test)
    return train, tested, meta_loader(recipe, accelerator, parts), order


def by_id(loader: Loader, wanted: list[Request]) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for batch in loader.batches(wanted):
        found |= dict(zip(batch.ids.tolist(), batch.images, strict=True))
    return found


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


SYNTHETIC = ["data.loader=synthetic", "data.root=''", "data.meta_fraction=0", "data.test_fraction=0"]
LOADERS = [["data.loader=dali"], ["data.loader=resident", "data.crop=center"], SYNTHETIC]


@pytest.mark.parametrize("words", LOADERS, ids=["dali", "resident", "synthetic"])
def test_training_images_are_those_of_the_policy_by_itself(make_recipe: MakeRecipe, words: list[str]) -> None:
    recipe = make_recipe(*words, *POLICY)
    policy = fixed_policy(recipe)
    assert policy is not None
    accelerator = Accelerator(cpu=True)
    parts = find_data(recipe, accelerator)
    order = Order(parts.splits.train, recipe.run.seed, 12)
    plain = training_loader(make_recipe(*words), accelerator, parts, order)
    loader = training_loader(recipe, accelerator, parts, order)
    changed = 0
    wanted = list(order.requests(1, 4))
    for request, before, after in zip(wanted, plain.batches(wanted), loader.batches(wanted), strict=True):
        params = policy.sample(Key(3, request.epoch, Stream.POLICY), before.draws)
        assert torch.equal(after.images, policy.apply(before.images, params))
        changed += int((after.images != before.images).flatten(1).any(1).sum())
    assert changed > 18


@pytest.mark.parametrize("words", LOADERS[:2], ids=["dali", "resident"])
def test_evaluation_and_meta_images_are_left_alone(make_recipe: MakeRecipe, words: list[str]) -> None:
    _, tested, meta, _ = loaders(make_recipe(*words, *POLICY))
    _, plain_tested, plain_meta, _ = loaders(make_recipe(*words))
    for one, other in ((tested, plain_tested), (meta, plain_meta)):
        held = np.flatnonzero(one.rows.numpy() >= 0) if hasattr(one, "rows") else np.arange(40)
        assert len(held) > 3
        assert same(by_id(one, [Request(0, held)]), by_id(other, [Request(0, held)]))


@pytest.mark.parametrize("words", LOADERS[:2], ids=["dali", "resident"])
def test_any_number_of_processes_and_threads_sees_the_same_images(make_recipe: MakeRecipe, words: list[str]) -> None:
    train, _, _, order = loaders(make_recipe(*words, *POLICY))
    whole = by_id(train, list(order.requests(0, 2)))
    parts: dict[int, torch.Tensor] = {}
    for rank in range(3):
        train, _, _, order = loaders(make_recipe(*words, *POLICY, f"data.threads={rank + 1}"), world=3, rank=rank)
        parts |= by_id(train, list(order.requests(0, 2)))
    assert same(parts, whole)


def test_what_is_left_out_is_said_as_a_line(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map.csv").write_text("name,class\nclass0,a\nclass1,b\nclass2,\n")
    recipe = make_recipe(f"data.class_map={tmp_path / 'map.csv'}")
    assert recipe.data.root is not None
    shutil.copytree(Path(recipe.data.root) / "class0", Path(recipe.data.root) / "class2")
    for _ in range(2):  # made, and of the cache
        find_data(recipe, Accelerator(cpu=True))
        assert capsys.readouterr().err.splitlines()[-1] == "warning: data.class_map leaves out 20 images of class2 (20)"

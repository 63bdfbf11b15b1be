"""Uneven classes in a run: weights and adjustment by their formulas, what they act on, what they are refused with."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.console import Console
from fastaug.errors import DataError, RecipeError
from fastaug.losses import sample_losses
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Augment, Recipe
from fastaug.targets import hard_target
from fastaug.training import loop
from fastaug.training.build import Trainer, assemble
from fastaug.training.build_data import find_data
from fastaug.training.class_balance import build_adjustment, class_weights
from fastaug.training.run_folder import RunFolder
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 20, crop: center, loader: resident, threads: 1, test_fraction: 0.25}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.02}
train: {epochs: 2, batch_size: 12}
eval: {every: 0}
run: {log_ids: true}
"""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, jpegs) -> Path:
    """32 images of class0, 24 of which are trained on, 8 of class1 and 16 of class2."""
    root = jpegs(tmp_path_factory.mktemp("uneven"), classes=3, images=32, sizes=(24, 30))
    for label, keep in ((1, 8), (2, 16)):
        for path in sorted((root / f"class{label}").iterdir())[keep:]:
            path.unlink()
    return root


def recipe_of(tmp_path: Path, root: Path, *overrides: str) -> Recipe:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return read_recipe(tmp_path / "r.yaml", [f"data.root={root}", f"run.dir={tmp_path / 'run'}", *overrides])


def parts_and_recipe(tmp_path: Path, root: Path, *overrides: str):
    recipe = recipe_of(tmp_path, root, *overrides)
    return recipe, find_data(recipe, Accelerator(cpu=True))


def assembled(recipe: Recipe) -> Trainer:
    return assemble(recipe, Accelerator(cpu=True), RunFolder(recipe.run.dir), Console(False))


COUNTS = np.array([24, 6, 12])


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["augment.class_weight=inverse"], 1 / COUNTS),
        (["augment.class_weight=inverse", "data.sampling=sqrt"], 1 / np.sqrt(COUNTS)),
        (
            ["augment.class_weight=effective", "augment.class_weight_beta=0.9"],
            (1 - 0.9) / (1 - 0.9 ** COUNTS.astype(float)),
        ),
        (["augment.class_weight=[2, 1, 0]"], np.array([2, 1, 0])),
    ],
)
def test_weights_are_those_of_their_definitions_with_the_mean_one_over_images(tmp_path, uneven, overrides, wanted):
    recipe, parts = parts_and_recipe(tmp_path, uneven, *overrides)
    weights = class_weights(recipe, parts)
    np.testing.assert_allclose(weights / weights[0], wanted / wanted[0], rtol=1e-12)
    shares = np.sqrt(COUNTS) if recipe.data.sampling == "sqrt" else COUNTS
    assert (shares * weights).sum() / shares.sum() == pytest.approx(1)


def test_weights_come_from_a_file(tmp_path, uneven):
    (tmp_path / "w.tsv").write_text("class2\t3\nclass0\t1\nclass1\t2\n")
    weights = class_weights(*parts_and_recipe(tmp_path, uneven, f"augment.class_weight={tmp_path / 'w.tsv'}"))
    assert (weights / weights[0]).tolist() == pytest.approx([1, 2, 3])


def test_adjustment_is_tau_times_the_log_of_the_share_in_what_is_drawn(tmp_path, uneven):
    found = build_adjustment(*parts_and_recipe(tmp_path, uneven, "augment.logit_adjustment=1.5"), CPU)
    np.testing.assert_allclose(found, 1.5 * np.log(COUNTS / 42), rtol=1e-6)
    keys = ["augment.logit_adjustment=1", "data.sampling=sqrt"]
    found = build_adjustment(*parts_and_recipe(tmp_path, uneven, *keys), CPU)
    np.testing.assert_allclose(found, np.log(np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()), rtol=1e-6)


def test_adjustment_follows_the_labels_that_are_trained_on(tmp_path, uneven):
    _, parts = parts_and_recipe(tmp_path, uneven)
    moved = [i for i in parts.splits.train if parts.index.labels[i] == 0][:12]
    (tmp_path / "l.tsv").write_text("".join(f"{i}\tclass1\n" for i in moved))
    keys = ["augment.logit_adjustment=1", f"data.labels={tmp_path / 'l.tsv'}"]
    found = build_adjustment(*parts_and_recipe(tmp_path, uneven, *keys), CPU)
    np.testing.assert_allclose(found, np.log(np.array([12, 18, 12]) / 42), rtol=1e-6)


def test_clean_images_count_by_their_weight_in_the_prior(tmp_path, uneven):
    """Half of class1's images are the meta split, and trained on with three times the weight of others."""
    _, parts = parts_and_recipe(tmp_path, uneven)
    lists = tmp_path / "lists"
    lists.mkdir()
    train, label = parts.splits.train.tolist(), parts.index.labels
    clean = [i for i in train if label[i] == 1][:3]
    for name, ids in (("train", sorted({*train} - {*clean})), ("meta", clean), ("test", parts.splits.test.tolist())):
        (lists / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
    keys = ["augment.logit_adjustment=1", "meta.frozen=true", "meta.train_weight=3"]
    keys += [f"data.splits={lists}", "data.test_fraction=0"]
    found = build_adjustment(*parts_and_recipe(tmp_path, uneven, *keys), CPU)
    weighed = COUNTS + np.array([0, 2 * 3, 0])
    np.testing.assert_allclose(found, np.log(weighed / weighed.sum()), rtol=1e-6)


def test_the_other_class_is_adjusted_as_an_even_one(tmp_path, uneven):
    keys = ["augment.logit_adjustment=1", "augment.other_class=true", "augment.shift=0.2"]
    found = build_adjustment(*parts_and_recipe(tmp_path, uneven, *keys), CPU)
    np.testing.assert_allclose(found, np.log(np.append(COUNTS / 42, 1 / 3)), rtol=1e-6)


@pytest.mark.parametrize("loss", ["ce", "kl", "symmetric_kl", "gce", "focal", "bce"])
def test_every_loss_is_of_adjusted_logits_and_mixed_targets(loss):
    logits, shift = torch.randn(5, 3), torch.tensor([0.3, -1.0, 2.0])
    target = hard_target(torch.tensor([0, 1, 2, 0, 1]))
    target = target._replace(classes=torch.stack([target.classes[:, 0], target.classes[:, 0].flip(0)], 1))
    target = target._replace(mass=torch.tensor([[0.6, 0.3]] * 5), weight=torch.rand(5))
    plain, moved = sample_losses(Augment(loss=loss)), sample_losses(Augment(loss=loss), shift)
    torch.testing.assert_close(moved(logits, target), plain(logits + shift, target), rtol=0, atol=0)
    assert not torch.allclose(moved(logits, target), plain(logits, target))


def test_the_meta_step_differentiates_the_adjusted_loss_and_validates_the_plain_one(tmp_path, uneven):
    keys = ["augment.logit_adjustment=1", "meta.learn=[weights]", "data.meta_fraction=0.25", "meta.batch_size=4"]
    trainer = assembled(recipe_of(tmp_path, uneven, *keys, "run.log_losses=true"))
    logits, target = torch.randn(4, 3), hard_target(torch.tensor([0, 1, 2, 0]))
    wanted = sample_losses(Augment())(logits + build_adjustment(trainer.recipe, trainer.parts, CPU), target)
    torch.testing.assert_close(trainer.meta.training.losses(logits, target), wanted, rtol=0, atol=0)
    torch.testing.assert_close(trainer.objective(logits, target), wanted.sum())
    torch.testing.assert_close(trainer.sample_losses._losses(logits, target), wanted, rtol=0, atol=0)
    plain = torch.nn.functional.cross_entropy(logits, target.classes[:, 0], reduction="sum")
    torch.testing.assert_close(trainer.meta.validation._loss(logits, target.classes[:, 0]), plain)


def test_mixed_samples_weigh_both_classes_by_their_masses(tmp_path, uneven):
    keys = ["augment.class_weight=inverse", "augment.cutmix=1", "augment.soften=none"]
    trainer = assembled(recipe_of(tmp_path, uneven, *keys))
    weights = torch.from_numpy(class_weights(trainer.recipe, trainer.parts)).float()
    batch = next(iter(trainer.loader.batches(trainer.order.requests(0, 1))))
    _, target = trainer.augment.training(batch, 0)
    share = target.mass / target.mass.sum(1, keepdim=True)
    torch.testing.assert_close(target.weight, (share * weights[target.classes]).sum(1))
    assert (target.classes[:, 0] != target.classes[:, 1]).any()


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.sampling=sqrt", "augment.logit_adjustment=1", "augment.cutmix=1"],
        pytest.param(["data.sampling=balanced"], marks=pytest.mark.slow),
        pytest.param(
            ["augment.class_weight=effective", "augment.logit_adjustment=1", "augment.loss=gce"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_cut_short_goes_on_as_if_it_was_not(tmp_path, uneven, monkeypatch, overrides):
    (tmp_path / "whole").mkdir()
    assert run(recipe_of(tmp_path / "whole", uneven, *overrides)) == 0
    fresh()
    step = loop.train_step

    def until_the_second_epoch(trainer, batches):
        if trainer.progress.step == trainer.order.steps_per_epoch + 1:
            raise KeyboardInterrupt
        return step(trainer, batches)

    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", until_the_second_epoch)
        assert run(recipe_of(tmp_path / "cut", uneven, *overrides)) != 0
    fresh()
    assert run(recipe_of(tmp_path / "cut", uneven, *overrides)) == 0
    one, other = (json.loads((tmp_path / name / "run/result.json").read_text()) for name in ("whole", "cut"))
    assert one["test"] == other["test"]


def fresh() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_balanced_epochs_have_as_many_of_every_class(tmp_path, uneven):
    assert run(recipe_of(tmp_path, uneven, "data.sampling=balanced")) == 0
    fresh()
    _, parts = parts_and_recipe(tmp_path, uneven)
    lines = [json.loads(line) for line in (tmp_path / "run/ids-0.jsonl").read_text().splitlines()]
    for epoch in (0, 1):
        ids = [i for line in lines if line["epoch"] == epoch for i in line["ids"]]
        assert Counter(parts.index.labels[ids].tolist()) == {0: 14, 1: 14, 2: 14}


@pytest.mark.parametrize(
    "override", ["augment.logit_adjustment=1", "augment.class_weight=inverse", "data.sampling=balanced"]
)
def test_a_class_without_training_images_is_named(tmp_path, uneven, override):
    _, parts = parts_and_recipe(tmp_path, uneven)
    rare = [i for i in parts.splits.train if parts.index.labels[i] == 1]
    (tmp_path / "l.tsv").write_text("".join(f"{i}\tclass0\n" for i in rare))
    recipe = recipe_of(tmp_path, uneven, override, f"data.labels={tmp_path / 'l.tsv'}")
    with pytest.raises(DataError, match="no training image of 1 classes: class1; add images") as caught:
        assembled(recipe)
    assert str(caught.value).startswith(override.partition("=")[0])


def test_weights_that_are_not_of_these_classes_are_told(tmp_path, uneven):
    with pytest.raises(RecipeError, match=r"2 weights for 3 classes; .* class0 first and class2 last"):
        assembled(recipe_of(tmp_path, uneven, "augment.class_weight=[1,2]"))
    with pytest.raises(RecipeError, match=r"augment\.class_weight: all weights are 0"):
        assembled(recipe_of(tmp_path, uneven, "augment.class_weight=[0,0,0]"))

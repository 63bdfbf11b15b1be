"""Loss weights that need no meta step: what of the record they follow, clean images, and a run with them."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.batch import Batch
from fastaug.evaluation.training_record import TrainingRecord
from fastaug.recipe.reading import read_recipe
from fastaug.targets import hard_target
from fastaug.training import loop
from fastaug.training.build_data import find_data
from fastaug.training.image_weights import ImageWeights, build_image_weights
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 20, crop: center, loader: resident, threads: 1, test_fraction: 0.2, meta_fraction: 0.2}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.02}
train: {epochs: 4, batch_size: 12}
augment: {cutmix: 1.0, trust: 4}
meta: {frozen: true, train_weight: 5}
eval: {every: 0}
run: {log_ids: true}
"""


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def record_of(*epochs: list[list[float]]) -> TrainingRecord:
    """The record of three images of class 0 whose class probabilities were `epochs`, one row an image."""
    record = TrainingRecord(3, 3, Accelerator(cpu=True), 3)
    ids, labels = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    batch = Batch(torch.zeros(3, 2, 2, 3, dtype=torch.uint8), labels, ids, ids)
    for number, rows in enumerate(epochs):
        record.begin(number)
        record.add(batch, torch.tensor(rows).log(), hard_target(labels))
    return record


def test_an_image_weighs_what_its_label_was_believed_beside_the_likeliest_class():
    first, second = (
        [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1]],
        [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]],
    )
    none, ids = torch.zeros(3, dtype=torch.bool), torch.tensor([1, 0, 2])
    weights = ImageWeights(record := record_of(first), 2, none, 1)
    assert weights(ids).tolist() == [1, 1, 1]  # in the first epoch
    record.flush()
    assert weights(ids).tolist() == pytest.approx([(0.1 / 0.8) ** 2, 1, (0.4 / 0.5) ** 2])
    record = record_of(first, second)
    record.flush()
    assert ImageWeights(record, 2, none, 1)(ids).tolist() == pytest.approx([(0.4 / 1.4) ** 2, 1, 1])


def test_clean_images_have_the_weight_they_are_given_whatever_the_record_says():
    record = record_of([[0.1, 0.8, 0.1]] * 3)
    record.flush()
    weights = ImageWeights(record, 4, torch.tensor([True, False, False]), 5)
    assert weights(torch.tensor([0, 1])).tolist() == pytest.approx([5, 0.125**4])
    assert ImageWeights(None, 0, torch.tensor([True, False, False]), 5)(torch.tensor([0, 2])).tolist() == [5, 1]


def trained(folder: Path, root: Path, *overrides: str) -> int:
    (folder.parent / "recipe.yaml").write_text(RECIPE)
    code = run(read_recipe(folder.parent / "recipe.yaml", [f"data.root={root}", f"run.dir={folder}", *overrides]))
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    return code


def test_a_mixed_sample_weighs_the_mean_of_both_images_by_their_masses(jpeg_folder, tmp_path, monkeypatch):
    seen = []
    step = loop.train_step

    def watched(trainer, batches):
        training = trainer.augment.training

        def told(batch, epoch):
            found, target = training(batch, epoch)
            own = trainer.augment.image_weights(batch.ids)
            partner = own[trainer.augment.sample(batch, epoch).partner]
            mass = target.mass / target.mass.sum(1, keepdim=True)
            torch.testing.assert_close(target.weight, mass[:, 0] * own + mass[:, 1] * partner)
            seen.append((epoch, own))
            return found, target

        monkeypatch.setattr(trainer.augment, "training", told)
        rate = step(trainer, batches)
        monkeypatch.setattr(trainer.augment, "training", training)
        return rate

    monkeypatch.setattr(loop, "train_step", watched)
    assert trained(tmp_path / "run", jpeg_folder(images=20), "augment.soften=none") == 0
    first = torch.cat([own for epoch, own in seen if epoch == 0])
    later = torch.cat([own for epoch, own in seen if epoch == 3])
    assert sorted(set(first.tolist())) == [1, 5]  # no record yet
    assert (later == 5).sum() == 8  # of 40 images: a fifth of those of train, and of the others none
    assert ((later > 0) & (later < 1)).any()


@pytest.mark.slow
def test_weights_are_those_of_the_epochs_before_wherever_checkpoints_are(jpeg_folder, tmp_path):
    root = jpeg_folder(images=20)
    assert trained(tmp_path / "often", root) == 0
    assert trained(tmp_path / "once", root, "run.checkpoint_every=1000") == 0
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("often", "once"))
    assert one["test"] == other["test"]


def test_clean_images_are_known_on_the_device_of_the_training(jpeg_folder, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    keys = [f"data.root={jpeg_folder(images=20)}", "run.sample_record=false", "augment.trust=0"]
    recipe = read_recipe(tmp_path / "r.yaml", keys)
    weights = build_image_weights(recipe, find_data(recipe, Accelerator(cpu=True)), None, torch.device("meta"))
    assert weights(torch.arange(3)).device.type == "meta"


def test_a_run_cut_short_goes_on_with_the_same_weights(jpeg_folder, tmp_path, monkeypatch):
    root = jpeg_folder(images=20)
    assert trained(tmp_path / "whole", root) == 0
    step = loop.train_step

    def until_the_third_epoch(trainer, batches):
        if trainer.progress.step == 2 * trainer.order.steps_per_epoch:
            raise KeyboardInterrupt
        return step(trainer, batches)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", until_the_third_epoch)
        assert trained(tmp_path / "cut", root) != 0
    assert trained(tmp_path / "cut", root) == 0
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "cut"))
    assert one["test"] == other["test"]

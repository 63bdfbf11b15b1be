"""The meta step of real runs where something goes wrong, or is asked for in a way that cannot work."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastaug.meta.one_step as meta_module
from fastaug.errors import RecipeError
from fastaug.hypergrad import ENGINES
from fastaug.hypergrad.optimizer_jacobians.predicted import direction_ahead
from fastaug.hypergrad.problem import Samples, network_logits
from fastaug.meta.build import build_learned, missing_meta_classes
from fastaug.meta.in_pass import InstantStep
from fastaug.meta.one_step import OneStep
from fastaug.meta.reweighting import instant_labels, with_rows
from fastaug.meta.validation_gradient import ValidationGradient
from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

from .conftest import assert_same, last, lines

RECIPE = """
data: {img_size: 20, crop: rrc, threads: 1}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.02}
train: {epochs: 2, batch_size: 8}
meta: {every: 1, fraction: 1, batch_size: 6}
eval: {every: 0}
run: {log_every: 1}
"""
INSTANT = ["meta.learn=[instant_weights]", "meta.engine=fused"]


@pytest.fixture
def start(tmp_path, jpeg_folder):
    """start("key=value", ...) -> run folder; 16 images of two classes to train, 16 of meta, 16 of test."""
    root = jpeg_folder(splits=("train", "meta", "test"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def begin(*overrides: str, code: int = 0) -> Path:
        settings = [f"data.root={root}", f"run.dir={tmp_path / 'run'}", *overrides]
        assert run(read_recipe(tmp_path / "recipe.yaml", settings)) == code
        return tmp_path / "run"

    return begin


def spoil(monkeypatch, *renewals: int):
    """Validation gradients that are not finite, at these renewals."""
    gradient = ValidationGradient._gradient

    def spoilt(self, *args):
        found = gradient(self, *args)
        return {k: v * torch.nan for k, v in found.items()} if self.renewals in renewals else found

    monkeypatch.setattr(ValidationGradient, "_gradient", spoilt)


@pytest.mark.parametrize(
    "learn",
    [
        INSTANT,
        pytest.param(["meta.learn=[instant_weights,instant_labels]", "meta.engine=fused"], marks=pytest.mark.slow),
    ],
)
def test_a_validation_gradient_that_is_not_finite_leaves_an_instant_run_to_train_on(start, monkeypatch, learn):
    spoil(monkeypatch, 0, 2)
    folder = start(*learn, "meta.half_life=4")
    assert len(lines(folder, "train")) == 4
    assert all(line["loss"] > 0 for line in lines(folder, "train"))
    assert [line.get("skipped", False) for line in lines(folder, "meta")] == [True, False, False, False]
    alarms = [" ".join(line.get("alarms", [])) for line in lines(folder, "learned")]
    assert ["1 validation gradients were left out" in alarm for alarm in alarms] == [True, False, True, False]


def test_one_that_is_not_finite_does_not_stay_in_the_average(start, monkeypatch):
    spoil(monkeypatch, 1)
    folder = start("meta.learn=[weights]", "meta.half_life=4")
    assert not any(line.get("skipped") for line in lines(folder, "meta"))
    assert lines(folder, "learned")[-1]["weight_mean"] != 1


def test_samples_whose_instant_weight_is_zero_are_counted(start):
    found = [line["without_weight"] for line in lines(start(*INSTANT), "meta")]
    assert all(0 <= share < 1 for share in found)
    assert any(share > 0 for share in found)


@pytest.mark.parametrize("engine", ["fused", pytest.param("forward", marks=pytest.mark.slow)])
def test_instant_parts_are_those_of_the_hypergradient_in_reverse_mode(start, monkeypatch, engine):
    compared = []
    before_forward = InstantStep.before_forward

    def watched(self, images, target, step, seed):
        logits, found = before_forward(self, images, target, step, seed)
        written = with_rows(target, self.augment.outputs)
        problem = self.problem(self.weights(self.network), Samples(images, written), seed)
        names = self.network.named_parameters()
        u = direction_ahead(self.optimizer, names, self.validation.value(), approximate=False)
        cotangent = ENGINES["reverse"](problem, u, images=False)
        labels, harm = instant_labels(cotangent, written, temperature=1.0, trust=5.0, total=lambda local: local)
        weights = (harm < 0).float()
        clear = harm.abs() > 1e-3  # the others may fall on either side
        assert (found.weight > 0)[clear].tolist() == (weights > 0)[clear].tolist()
        if clear.all():
            torch.testing.assert_close(found.weight, weights / weights.mean())
        torch.testing.assert_close(found.rows, labels.rows, rtol=1e-3, atol=1e-3)
        compared.append(step)
        return logits, found

    monkeypatch.setattr(InstantStep, "before_forward", watched)
    start("meta.learn=[instant_weights,instant_labels]", f"meta.engine={engine}", "meta.half_life=4")
    assert compared == [0, 1, 2, 3]


@pytest.mark.slow
def test_v_is_renewed_once_an_update_and_not_by_every_micro_batch(start, monkeypatch):
    counts = []
    renew = ValidationGradient.renew
    monkeypatch.setattr(
        ValidationGradient, "renew", lambda self, *args: (renew(self, *args), counts.append(self.renewals))
    )
    folder = start(*INSTANT, "train.accumulate=2", "meta.renew=3")
    assert len(lines(folder, "train")) == 4
    assert counts == [1, 2]  # updates 0 and 3


@pytest.mark.slow
def test_differences_reuse_training_logits_with_the_dropout_masks_of_their_own_micro_batch(start, monkeypatch):
    seen = []
    gradients = OneStep.gradients

    def watched(self, problem, u, leaves, logits):
        with torch.no_grad():
            again = network_logits(problem, problem.weights, problem.samples.images, twice=False)
        seen.append((again - logits).abs().max().item() / logits.abs().max().item())
        return gradients(self, problem, u, leaves, logits)

    monkeypatch.setattr(OneStep, "gradients", watched)
    start("meta.learn=[weights]", "meta.engine=difference", "train.accumulate=2", "model.drop=0.5")
    assert len(seen) == 4
    assert max(seen) < 1e-5


def test_an_engine_that_is_named_is_tested_like_any_other(start):
    folder = start(
        *(
            "meta.learn=[policy]",
            "meta.probabilities=score",
            "meta.engine=forward",
            "model.kwargs={norm_layer: groupnorm1}",
        ),
        code=2,
    )
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert "meta.engine: forward with test_resnet: no engine can differentiate" in reason
    assert "native_group_norm_backward" in reason


@pytest.mark.slow
def test_an_implicit_direction_that_fails_ends_the_first_meta_step_and_leaves_out_later_ones(start, monkeypatch):
    settings = ["meta.learn=[weights]", "meta.engine=implicit", "meta.layers=[fc]"]
    folder = start(*settings, "meta.alpha=1e6", code=2)
    assert "meta.engine: implicit: the Neumann series" in json.loads((folder / "status.json").read_text())["reason"]
    direction, calls = meta_module.implicit_direction, []

    def failing(problem, v, **kwargs):
        calls.append(kwargs["parameters"])
        if len(calls) == 3:
            raise ValueError("diverges")
        return direction(problem, v, **kwargs)

    monkeypatch.setattr(meta_module, "implicit_direction", failing)
    start(*settings, f"run.dir={folder}-two")
    assert [line.get("skipped", False) for line in lines(Path(f"{folder}-two"), "meta")] == [False, False, True, False]
    assert calls[0] == ["fc.weight", "fc.bias"]


@pytest.mark.slow
def test_an_implicit_direction_waits_for_a_finite_validation_gradient(start, monkeypatch):
    spoil(monkeypatch, 0)
    folder = start("meta.learn=[weights]", "meta.engine=implicit")
    assert [line.get("skipped", False) for line in lines(folder, "meta")] == [True, False, False, False]


def test_damaged_meta_images_are_named(start, tmp_path):
    damaged = tmp_path / "images/meta/class0/003.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    folder = start("meta.learn=[weights]", "meta.batch_size=16")
    assert "meta/class0/003.jpg" in (folder / "skipped.jsonl").read_text()


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        (["optim.opt=adamw"], [3, 4]),
        (["optim.opt=sgd"], [1, 2, 3, 4]),
        pytest.param(["optim.opt=adamw", "meta.engine=fused"], [3, 4], marks=pytest.mark.slow),
        pytest.param(["optim.opt=adamw", "meta.start_epochs=1.5"], [4], marks=pytest.mark.slow),
        pytest.param(["optim.opt=adamw", "meta.learn=[instant_weights]"], [1, 2, 3, 4], marks=pytest.mark.slow),
    ],
)
def test_where_gradients_are_divided_by_second_moments_exact_steps_wait_for_some(start, keys, steps):
    folder = start("meta.learn=[weights]", "optim.lr=1e-3", *keys)
    assert [line["step"] for line in lines(folder, "meta")] == steps
    assert not any(line.get("skipped") for line in lines(folder, "meta"))


@pytest.mark.slow
def test_a_run_continues_when_images_to_evaluate_were_added_behind_those_to_train_on(tmp_path, jpeg_folder):
    root = jpeg_folder(splits=("train", "meta", "val"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    keys = ["meta.learn=[weights]", f"data.root={root}", "run.log_losses=true", "run.keep=9"]

    def begin(name: str) -> Path:
        assert run(read_recipe(tmp_path / "recipe.yaml", [*keys, f"run.dir={tmp_path / name}"])) == 0
        return tmp_path / name

    (weights, state), cut = last(begin("whole")), begin("cut")
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    (cut / "checkpoints" / "last").write_text("step-00000002")
    (root / "val/class1/zzz.jpg").write_bytes((root / "val/class1/000.jpg").read_bytes())
    continued, after = last(begin("cut"))
    assert_same(continued, weights)
    table, before = (found["meta"]["learned"]["parts.weights.table.weight"] for found in (after, state))
    assert len(table) == len(before) + 1
    assert_same(table[:-1], before)
    assert_same(after["sample_losses"][:, :-1], state["sample_losses"])
    assert after["sample_record"]["knows_harm"]
    for name in ("sums", "masses", "candidates", "counts"):
        assert_same(after["sample_record"][name][..., :-1], state["sample_record"][name])


def test_a_meta_split_of_one_class_is_refused_and_missing_ones_are_named(start, tmp_path):
    (tmp_path / "splits").mkdir()
    images = {split: [f"{split}/class{c}/{i:03}.jpg" for c in (0, 1) for i in range(8)] for split in ("train", "test")}
    images["meta"] = [f"meta/class0/{i:03}.jpg" for i in range(8)]
    for split, paths in images.items():
        (tmp_path / "splits" / f"{split}.txt").write_text("\n".join(paths))
    keys = [*INSTANT, f"data.splits={tmp_path / 'splits'}", "train.epochs=1"]
    folder = start(*keys, code=3)
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert "all 8 images of the meta split are of class 'class0', one of 2" in reason
    index, splits = SimpleNamespace(labels=np.array([0, 1, 2, 2, 0])), SimpleNamespace(meta=np.array([1, 2]))
    assert missing_meta_classes(SimpleNamespace(classes=("a", "b", "c"), index=index, splits=splits)) == ["a"]


def test_meta_batches_must_leave_every_process_enough_images(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "recipe.yaml", ["data.root=x", "meta.learn=[weights]"])
    parts = SimpleNamespace(splits=SimpleNamespace(meta=range(16)))
    with pytest.raises(RecipeError, match=r"meta\.batch_size: 6 is too small for 4 processes"):
        build_learned(recipe, SimpleNamespace(num_processes=4), parts, None, None, None)

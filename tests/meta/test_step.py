"""The meta step in real runs: neutral at rate 0, learning otherwise, continued bit for bit, refused with reasons."""

import copy
import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fastaug.augment.pipeline as batch_module
from fastaug.evaluation.training_record import SUMS
from fastaug.meta.one_step import OneStep
from fastaug.meta.step import MetaStep
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.training.finite_check import FiniteCheck

from .conftest import RECIPE, assert_same, last, lines

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
EVERYTHING = ["meta.learn=[policy,augmenter,sample_policy,softness,smoothing,weights,labels,optim]"]
EVERYTHING += ["meta.probabilities=score"]
RATES = ("policy_lr", "augmenter_lr", "sample_policy_lr", "softness_lr", "smoothing_lr", "weights_lr", "labels_lr")
RATES += ("optim_lr",)
STILL = [f"meta.{name}=0" for name in RATES]
STILL_TOO = ["meta.softness_lr=0", "meta.weights_lr=0"]  # of fewer parts
FUSED = ["meta.engine=fused", "meta.fraction=1"]


VISION_TRANSFORMER = [
    *("meta.learn=[weights]", "meta.engine=functional", "optim.opt=lamb"),
    *("model.name=test_vit", "data.img_size=32", "model.kwargs={img_size: 32}"),
]


@pytest.mark.parametrize(
    "parts",
    [
        [*EVERYTHING, *STILL],
        pytest.param(["meta.learn=[weights,softness]", *FUSED, *STILL_TOO], marks=pytest.mark.slow),
    ],
    ids=["all", "fused"],
)
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_at_rate_zero_the_training_trajectory_is_that_without_meta_steps(train, precision, parts):
    settings = [*parts, f"train.precision={precision}"]
    ran = train("ran", *settings)
    never = train("never", *settings, "meta.start_epochs=1.99")
    meta = lines(ran, "meta")
    assert [line["step"] for line in meta] == [1, 3, 5]
    assert all(line["hypergradient"] > 0 for line in meta)
    assert not lines(never, "meta")
    differs = {"meta": None, "progress": None, "lines": None}  # of the logs: one has meta steps in it
    for a, b in zip(last(ran), last(never), strict=True):
        for record in (each["sample_record"] for each in (a, b) if "sample_record" in each):
            record["sums"][SUMS.index("harm")], record["knows_harm"] = 0, None  # meta steps tell of harm
        assert_same({**a, **differs}, {**b, **differs})
    losses = [[line["loss"] for line in lines(folder, "train")] for folder in (ran, never)]
    assert losses[0] == losses[1]


def test_a_meta_step_leaves_everything_but_what_it_learns_alone(train, monkeypatch):
    seen = []
    after_update = OneStep.after_update

    def watched(self, batch, logits, number, seed):
        def state():
            return copy.deepcopy(
                {
                    "buffers": dict(self.network.named_buffers()),
                    "weights": {name: p.detach() for name, p in self.network.named_parameters()},
                    "gradients": {name: p.grad for name, p in self.network.named_parameters()},
                    "optimizer": self.optimizer.state_dict(),
                    "generator": torch.get_rng_state(),
                    "training": self.network.training,
                }
            )

        before, learned = state(), copy.deepcopy(self.learned.state_dict())
        after_update(self, batch, logits, number, seed)
        assert_same(state(), before)
        seen.append([name for name, value in self.learned.state_dict().items() if (value != learned[name]).any()])

    monkeypatch.setattr(OneStep, "after_update", watched)
    train("run", *EVERYTHING)
    assert [bool(names) for names in seen] == [True, False] * 3
    parts = {name.split(".")[1] for name in seen[-2]}
    assert parts == {"policy", "augmenter", "sample_policy", "softness", "smoothing", "weights", "labels", "optim"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["meta.learn=[policy]", "meta.probabilities=gumbel"], marks=pytest.mark.slow),
        pytest.param(
            ["meta.learn=[policy]", "meta.probabilities=score", "meta.magnitudes=false", "meta.engine=difference"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["meta.learn=[instant_weights]", "meta.every=1", "meta.fraction=1", "meta.renew=2"], marks=pytest.mark.slow
        ),
        ["meta.learn=[instant_weights,instant_labels]", "meta.every=1", *FUSED, "meta.layers=[layer4,fc]"],
        ["meta.learn=[weights]", "meta.engine=auto", "optim.opt=adamw", "train.accumulate=2", "meta.fraction=1"],
        pytest.param(
            ["meta.learn=[softness]", "meta.weights=ema", "model.ema=true", "model.ema_decay=0.9", "meta.half_life=4"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                "meta.learn=[weights,softness]",
                "meta.engine=reverse",
                "augment.aa=rand-m9-mstd0.5",
                "augment.reprob=0.5",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(VISION_TRANSFORMER, marks=pytest.mark.slow),
        pytest.param(
            ["meta.learn=[policy,softness]", "meta.probabilities=score", "meta.engine=implicit"], marks=pytest.mark.slow
        ),
        [
            *("meta.learn=[weights,labels]", *FUSED, "meta.every=1", "meta.table_optimizer=rmsprop"),
            *("meta.weights_form=softplus", "augment.loss=symmetric_kl"),
        ],
        pytest.param(
            ["meta.learn=[sample_policy]", "meta.sample_policy=shared", "meta.engine=functional", "eval.tta=2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["meta.learn=[sample_policy]", "meta.table_optimizer=rmsprop", "meta.engine=implicit", "augment.mixup=1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["meta.learn=[sample_policy]", "meta.steps=2", "meta.fraction=1", "meta.engine=auto"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: " ".join(settings)[:70],
)
def test_every_part_trains_to_a_result(train, settings):
    folder = train("run", *settings, "train.epochs=1")
    assert all(np.isfinite(line["hypergradient"]) for line in lines(folder, "meta"))
    assert any(line["hypergradient"] > 0 for line in lines(folder, "meta"))


@pytest.mark.parametrize(
    "learned",
    [EVERYTHING, pytest.param(["meta.learn=[augmenter]", "train.plain_step=true"], marks=pytest.mark.slow)],
    ids=["everything", "plain step"],
)
def test_a_continued_run_ends_as_the_uninterrupted_one(train, learned):
    settings = [*learned, "meta.half_life=3", "meta.renew=2", "meta.every=1", "meta.engine=auto"]
    settings += ["meta.conditioned=true", "model.ema=true", "model.ema_decay=0.9"]
    whole = train("whole", *settings)
    shutil.copytree(whole, whole.parent / "cut")
    checkpoints = sorted((whole.parent / "cut" / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    shutil.rmtree(checkpoints[-1])
    (checkpoints[0].parent / "last").write_text(checkpoints[0].name)
    cut = train("cut", *settings)
    for a, b in zip(last(whole), last(cut), strict=True):
        assert_same({**a, "progress": None}, {**b, "progress": None})
    assert lines(whole, "meta") == lines(cut, "meta")


@pytest.mark.slow
def test_frozen_layers_and_factors_on_rates_go_with_meta_steps(train):
    """Their derivatives are by group, of what is trained: continued as any other run, and with the full v."""
    settings = ["meta.learn=[weights,softness]", "meta.every=1", "model.freeze=[conv1.*,bn1.*,layer1.*]"]
    settings += ["optim.opt=adamw", "optim.layer_decay=0.7", "optim.lr_scale={head: 3}"]
    settings += ["model.head_first_epochs=1", "meta.start_epochs=1", "train.epochs=3", "run.checkpoint_every=1"]
    whole = train("whole", *settings, "run.keep=99")
    meta = lines(whole, "meta")
    assert [line["step"] for line in meta] == [6, 7, 8, 9]  # two updates of the whole network come first
    assert all(line["hypergradient"] > 0 for line in meta)
    shutil.copytree(whole, whole.parent / "cut")
    paths = sorted((whole.parent / "cut" / "checkpoints").glob("step-*"))
    for path in paths[6:]:
        shutil.rmtree(path)
    (paths[0].parent / "last").write_text(paths[5].name)
    cut = train("cut", *settings, "run.keep=99")
    for a, b in zip(last(whole), last(cut), strict=True):
        assert_same({**a, "progress": None}, {**b, "progress": None})
    assert lines(whole, "meta") == lines(cut, "meta")


def test_a_hypergradient_that_is_not_finite_is_left_out_and_counted(train, monkeypatch):
    from fastaug.meta.validation_gradient import ValidationGradient

    value = ValidationGradient.value
    monkeypatch.setattr(ValidationGradient, "value", lambda self: {k: v * float("nan") for k, v in value(self).items()})
    folder = train("run", *EVERYTHING)
    assert [line.get("skipped") for line in lines(folder, "meta")] == [True] * 3
    learned = lines(folder, "learned")[-1]
    assert any("1 meta steps were left out (3 so far)" in alarm for alarm in learned["alarms"])
    assert learned["weight_mean"] == pytest.approx(1)
    assert learned["optim_lr"] == pytest.approx(1)


@pytest.mark.slow
def test_fused_and_forward_move_probabilities_alike_in_the_first_update(train):
    """By the score function: what fused has not made twice, the images, does not matter."""
    settings = [
        "meta.learn=[policy]",
        "meta.probabilities=score",
        "meta.magnitudes=false",
        "meta.every=100",
        "meta.optimizer=sgd",
    ]
    settings += ["meta.policy_lr=1e6", "optim.clip_grad=null", "optim.lr=1e-4", "model.drop=0"]
    runs = [train(kind, *settings, *keys) for kind, keys in (("fused", FUSED), ("forward", ["meta.fraction=1"]))]
    fused, forward = (last(folder)[1]["meta"] for folder in runs)
    name = "parts.policy.policy.logits"
    moves = [state["learned"][name] - state["start"]["policy.policy.logits"] for state in (fused, forward)]
    assert moves[0].abs().max() > 1e-4
    cosine = torch.nn.functional.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0)
    assert cosine == pytest.approx(1, abs=1e-3)


def test_fused_and_forward_move_the_table_alike_in_the_first_update(train):
    """Plain gradient descent from the same weights, so slow that v is the same before and after the update."""
    settings = ["meta.learn=[weights]", "meta.every=100", "optim.clip_grad=null", "optim.lr=1e-4", "model.drop=0"]
    runs = [train(kind, *settings, *keys) for kind, keys in (("fused", FUSED), ("forward", ["meta.fraction=1"]))]
    fused, forward = (last(folder)[1]["meta"]["learned"]["parts.weights.table.weight"] - 1 for folder in runs)
    assert fused.count_nonzero() == forward.count_nonzero() >= 8
    assert torch.cosine_similarity(fused, forward, dim=0) > 0.999


def test_a_layer_without_weights_is_named(train):
    folder = train("run", "meta.learn=[weights]", *FUSED, "meta.layers=[layer4,nowhere]", code=2)
    message = (folder / "status.json").read_text()
    assert "meta.layers: nowhere has no trained weights; the network's modules: conv1, bn1, layer1" in message


def test_without_a_meta_split_there_is_no_meta_step(train):
    folder = train("run", "meta.learn=[weights]", "data.meta_fraction=0", code=3)
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert "meta split" in reason
    assert "data.meta_fraction" in reason


def test_an_optimizer_without_a_jacobian_is_refused_unless_approximated(train):
    folder = train("run", "meta.learn=[weights]", "optim.opt=lion", code=2)
    assert "Lion" in json.loads((folder / "status.json").read_text())["reason"]
    train("other", "meta.learn=[weights]", "optim.opt=lion", "meta.approximate=true", "train.epochs=1")


def test_dali_the_fused_op_and_the_meta_step_join_in_one_update(train, monkeypatch):
    """recipes/imagenet_sa_meta.yaml, small: each of the three leaves its mark in every update of a cadence of 1."""
    events = []

    def marked(owner, name, mark):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            events.append(mark)
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    marked(batch_module, "crop_mix", "op")
    marked(MetaStep, "move", "meta")
    marked(FiniteCheck, "ask", "update")
    meta = parse_yaml((RECIPES / "imagenet_sa_meta.yaml").read_text())
    keys = [f"augment.{k}={v}" for k, v in meta["augment"].items()] + ["augment.cutmix=0", "augment.smoothing=0"]
    learn = f"meta.learn=[{','.join(meta['meta']['learn'])}]"
    keys += ["meta.engine=auto", "meta.fraction=null", "meta.renew=1", "data.loader=dali"]
    folder = train("run", learn, *keys, "meta.every=1", "train.epochs=1")
    assert json.loads((folder / "result.json").read_text())["source"].startswith("encoded files, decoded by DALI")
    # An update augments its batch and, in it, the meta images; the meta step moves by what the training pass has shown.
    assert "".join(event[0] for event in events).startswith("ooum" + "ooum")
    assert all(line["hypergradient"] > 0 for line in lines(folder, "meta"))


def table(folder: Path) -> list[dict]:
    with (folder / "samples.csv").open() as file:
        return list(csv.DictReader(file))


def test_label_files_and_the_table_of_suspicious_images(train, tmp_path):
    rows = table(train("probe", "meta.learn=[weights]", "train.epochs=1"))
    assert len(rows) == 22
    wrong, swapped = rows[:4], {"flower": "temple", "temple": "flower"}
    file = tmp_path / "labels.tsv"
    file.write_text("# wrong on purpose\n" + "".join(f"{r['id']}\t{swapped[r['class']]}\n" for r in wrong))
    folder = train("run", "meta.learn=[weights]", f"data.labels={file}")
    trained = {row["id"]: row["class"] for row in table(folder)}
    assert [trained[r["id"]] for r in wrong] == [swapped[r["class"]] for r in wrong]
    found = json.loads((folder / "result.json").read_text())["samples"]
    assert 0 <= found["loss_auroc"] <= 1
    assert 0 <= found["weight_auroc"] <= 1


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(
            [
                "meta.learn=[policy,softness,weights]",
                "meta.probabilities=score",
                "meta.magnitudes=false",
                "meta.engine=functional",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["meta.learn=[softness,weights]", "meta.engine=fused", "meta.layers=[layer4,fc]"], marks=pytest.mark.slow
        ),
        pytest.param(
            [
                *(
                    "meta.learn=[policy,weights]",
                    "meta.probabilities=score",
                    "meta.fraction=0.5",
                    "augment.cutmix=0",
                    "augment.mix_group=null",
                ),
                *("augment.copies=2", "augment.consistency_detach=true", "meta.engine=functional"),
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["meta.learn=[sample_policy,weights]", "meta.engine=functional", "meta.sample_policy_lr=1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["meta.learn=[sample_policy,weights]", "meta.sample_policy=shared", "meta.engine=functional"],
            marks=pytest.mark.slow,
        ),
        [
            *(
                "meta.learn=[policy,softness,weights]",
                "meta.probabilities=score",
                "meta.magnitudes=false",
                "meta.fraction=0.5",
            ),
            *("train.batch_size=16", "train.accumulate=2", "train.drop_last=true", "augment.mix_group=2"),
        ],
    ],
    ids=["functional", "fused", "copies", "each image's policy", "its shared form", "a share of accumulated batches"],
)
@pytest.mark.usefixtures("train")  # writes the images
def test_two_processes_learn_what_one_does(tmp_path, in_processes, parts):
    """GroupNorm, mixing inside groups, all samples of a batch or some: float64 throughout, but for the images.

    What learns through those is equal to their precision.
    """
    (tmp_path / "sum.yaml").write_text(
        RECIPE.replace("name: test_resnet, drop: 0.2", "name: test_resnet, kwargs: {norm_layer: groupnorm1}")
    )
    keys = [
        *("meta.fraction=1", "meta.every=1", "augment.mix_group=4"),
        *(*parts, f"data.root={tmp_path / 'images'}", f"run.dir={tmp_path / 'sum'}"),
        *("meta.half_life=2", "run.log_losses=false"),
    ]
    found = []
    for processes in (1, 2):
        said = in_processes(processes, Path(__file__).with_name("meta_processes.py"), tmp_path / "sum.yaml", *keys)
        line = next(line for line in said.splitlines() if line.startswith("FOUND "))
        found.append(json.loads(line.removeprefix("FOUND ")))
    tolerance = 1e-6 if "sample_policy" in parts[0] else 1e-10
    assert found[0].keys() == found[1].keys() >= {"parts.weights.table.weight"}
    for name in found[0]:
        one, two = (np.array(result[name]) for result in found)
        assert one.size == 0 or np.abs(one).max() > 0
        np.testing.assert_allclose(two, one, rtol=0, atol=tolerance * np.abs(one).max(initial=0), err_msg=name)

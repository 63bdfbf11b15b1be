"""Copies of an image beside itself in real runs: what trains, and that the meta step repeats it."""

import pytest
import torch
from safetensors.torch import load_file

from fastaug.meta.one_step import OneStep
from fastaug.training.checkpoint import name_of

from .conftest import assert_same, last, lines

COPIES = ["augment.cutmix=0", "augment.copies=2", "augment.consistency_detach=true"]
POLICY = ["meta.learn=[policy]", "meta.probabilities=score"]


def test_a_meta_step_makes_the_copies_again(train, monkeypatch):
    """Bit for bit, whole groups of a half of the images; and everything learned moves."""
    given, met = [], []
    seen, problem = OneStep.before_forward, OneStep.problem

    def before_forward(self, images, target, step, seed):
        given.append((images.clone(), target))
        return seen(self, images, target, step, seed)

    def watched(self, weights, samples, seed):
        made = problem(self, weights, samples, seed)
        met.append((made, given[-1]))
        return made

    monkeypatch.setattr(OneStep, "before_forward", before_forward)
    monkeypatch.setattr(OneStep, "problem", watched)
    folder = train("run", "meta.learn=[policy,weights,smoothing,optim]", "meta.probabilities=score", *COPIES)
    assert len(met) == 3
    for made, (images, target) in met:
        n = len(images) // 3  # 8, or 6 in the last update of an epoch
        assert (made.views, made.one_sided, made.total) == (3, True, n // 2)
        rows = torch.tensor([row for view in range(3) for row in range(n * view + 1, n * view + n, 2)])
        assert_same(made.samples.images.detach(), images[rows])
        assert_same(made.samples.target.weight.detach(), target.weight[rows])
        assert (made.samples.log_probability[: n // 2] == 0).all()
        assert (made.samples.log_probability[n // 2 :] < 0).all()
    learned = last(folder)[1]["meta"]["learned"]
    moved = [name for name, value in learned.items() if value.is_floating_point() and value.unique().numel() > 1]
    assert {"parts.policy.policy.logits", "parts.policy.policy.strengths"} <= set(moved)
    for name in ("optim.rates.lr.raw", "optim.rates.weight_decay.raw"):
        assert learned[f"parts.{name}"] != 0
    assert all(line["hypergradient"] > 0 for line in lines(folder, "meta"))


@pytest.mark.slow
def test_at_rate_zero_training_goes_on_as_without(train):
    """With a fixed policy in the loader's threads too, and over two updates."""
    still = [*COPIES, *POLICY, "meta.policy_lr=0", "augment.aa=ra-n2-m9", "meta.fraction=1", "meta.engine=auto"]
    unrolled = train("unrolled", *still, "meta.steps=2")
    never = train("never", *still, "meta.start_epochs=1.99")
    assert len(lines(unrolled, "meta")) == 3
    assert_same(last(unrolled)[0], last(never)[0])


def test_policies_begin_when_told(train):
    """Until then training is that without them."""
    settings = [*POLICY, "meta.start_epochs=1.99", "run.keep=9"]
    without = train("without", *settings, "meta.slots=1", "augment.start_epochs=1")
    begun = train("begun", *settings, "augment.aa=ra-n2-m9", "augment.start_epochs=1")
    assert_same(weights_at(begun, 3), weights_at(without, 3))
    after, other = weights_at(begun, 6), weights_at(without, 6)
    assert any((after[name] != other[name]).any() for name in after)


def weights_at(folder, step):
    return load_file(folder / "checkpoints" / name_of(step) / "model.safetensors")

"""Copies of an image beside itself in real runs: what trains, and that the meta step repeats it."""

import pytest
import torch
from safetensors.torch import load_file

from fastaug.meta.one_step import OneStep

from .conftest import assert_same, last, lines

COPIES = ["augment.cutmix=0", "augment.copies=2", "augment.consistency_detach=true"]
POLICY = "meta.learn=[policy]"


@pytest.mark.parametrize("learn", ["meta.learn=[policy,weights,smoothing,optim]", "meta.learn=[policy]"])
def test_a_meta_step_makes_the_copies_again(train, monkeypatch, learn):
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
    folder = train("run", learn, *COPIES)
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
    assert all(line["hypergradient"] > 0 for line in lines(folder, "meta"))


def test_at_rate_zero_training_goes_on_as_without(train):
    """With a fixed policy in the loader's threads too, and with K = 1 and K = 2."""
    still = [*COPIES, POLICY, "meta.policy_lr=0", "augment.aa=ra-n2-m9"]
    ran = train("ran", *still)
    unrolled = train("unrolled", *still, "meta.steps=2", "meta.fraction=1", "meta.engine=auto")
    never = train("never", *still, "meta.start_epochs=1.99")
    assert len(lines(ran, "meta")) == len(lines(unrolled, "meta")) == 3
    for other in (ran, unrolled):
        assert_same(last(other)[0], last(never)[0])


def test_policies_begin_when_told(train, monkeypatch):
    """Until then training is that without them."""
    late = ["meta.start_epochs=1.99", "augment.aa=ra-n2-m9", "run.keep=9"]
    without = train("without", POLICY, "meta.start_epochs=1.99", "meta.slots=1", "augment.start_epochs=1", "run.keep=9")
    begun = train("begun", POLICY, *late, "augment.start_epochs=1")
    at_once = train("at_once", POLICY, *late)
    first = [last_of_epoch(folder, 3) for folder in (without, begun, at_once)]
    assert_same(first[0], first[1])
    assert (first[2]["conv1.weight"] != first[1]["conv1.weight"]).any()
    assert (last(without)[0]["conv1.weight"] != last(begun)[0]["conv1.weight"]).any()


def last_of_epoch(folder, step):
    return load_file(folder / "checkpoints" / f"step-{step:09}" / "model.safetensors")

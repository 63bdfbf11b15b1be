"""K updates under a policy and its copies: hypergradients against really training again, in float64."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from fastaug.augment.differentiable_ops import EIGHT
from fastaug.augment.shared_policy import Draws, SharedPolicy
from fastaug.hypergrad.engines.unroll import unroll
from fastaug.hypergrad.problem import Samples
from fastaug.losses import mixed_losses
from fastaug.seeding import Key, Stream
from fastaug.targets import hard_target

SIDE, CLASSES, STEP = 8, 3, 1e-5
OPTIMIZER = {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True}


def build(lr):
    """A network without kinks whose samples do not act on one another, after an update that fills the momentum."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    network.double()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, **OPTIMIZER)
    cross_entropy(network(pictures(90, 6)), labels(90, 6)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def pictures(seed, count):
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0.02, 0.98)


def labels(seed, count):
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def mixed(policy, draws, step, images, copies, count_chance=True):
    """`images` images and `copies` copies of each under what is drawn for them in update `step`."""
    clean, goal = pictures(step, images), hard_target(labels(step, images).repeat(1 + copies))
    chance = policy.log_probability(draws)
    return Samples(
        torch.cat([clean, policy.apply(clean.repeat(copies, 1, 1, 1), draws)]),
        goal._replace(mass=goal.mass.double(), weight=goal.weight.double()),
        torch.cat([chance.new_zeros(images), chance]) if count_chance else None,
    )


def retrained(lr, steps, losses, max_norm, total):
    """The validation loss after really training on `steps`, and how often that clipped."""
    network, optimizer = build(lr)
    clipped = 0
    for samples in steps:
        optimizer.zero_grad()
        (losses(network(samples.images.detach()), samples.target).sum() / total).backward()
        if max_norm is not None:
            clipped += bool(clip_grad_norm_(network.parameters(), max_norm) > max_norm)
        optimizer.step()
    with torch.no_grad():
        return float(validation(network)), clipped


def validation(forward):
    return cross_entropy(forward(pictures(70, 8)), labels(70, 8))


@pytest.mark.parametrize(("steps", "detach"), [(1, False), (2, True), (3, False)])
def test_magnitudes_against_training_again(steps, detach):
    """With momentum, weight decay and clipping, two slots, and two copies of each of three images."""
    lr, copies, images, max_norm = 0.3, 2, 3, 0.15
    losses = partial(mixed_losses, reduction="none", copies=copies, detach=detach)
    policy = SharedPolicy(EIGHT, 2).double()
    draws = [policy.sample(Key(0, k, Stream.LEARNED), range(images * copies)) for k in range(steps)]

    def made():
        return [mixed(policy, d, k, images, copies, count_chance=False) for k, d in enumerate(draws)]

    network, optimizer = build(lr)
    parameters = {"strengths": policy.strengths}
    found = unroll(network, optimizer, made(), losses, validation, parameters, total=images, max_norm=max_norm)
    for seed in (0, 1):
        way = torch.randn(len(policy.strengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = []
        for side in (STEP, -STEP):
            policy.strengths.data += side * way
            end, clipped = retrained(lr, made(), losses, max_norm, images)
            policy.strengths.data -= side * way
            ends.append(end)
            assert clipped == steps
        expected = (ends[0] - ends[1]) / (2 * STEP)
        assert abs(float(found["strengths"] @ way) - expected) < 1e-3 * abs(expected)


@pytest.mark.parametrize(("steps", "images"), [(1, 2), (2, 1), (3, 1)])
def test_probabilities_against_all_that_could_be_drawn(steps, images):
    """The mean hypergradient of all draws is the slope of the mean validation loss, where updates are small.

    With momentum and weight decay. Clipping is left out: what it does to one sample depends on what others drew.
    """
    lr, copies = 1e-5, 1
    losses = partial(mixed_losses, reduction="none", copies=copies)
    policy = SharedPolicy(EIGHT[:2], 1).double()
    with torch.no_grad():
        policy.logits += torch.tensor([0.3, -0.2, 0.4])
    noise = [policy.sample(Key(0, k, Stream.LEARNED), range(images)).noise for k in range(steps)]
    mean_loss, mean_found = torch.zeros(()), torch.zeros_like(policy.logits)
    for drawn in product(range(3), repeat=steps * images):
        ops = torch.tensor(drawn).view(steps, images, 1)
        draws = [Draws(op, own) for op, own in zip(ops, noise, strict=True)]
        made = [mixed(policy, d, k, images, copies) for k, d in enumerate(draws)]
        chance = torch.stack([policy.log_probability(d).sum() for d in draws]).sum().exp()
        mean_loss = mean_loss + chance * retrained(lr, made, losses, None, images)[0]
        network, optimizer = build(lr)
        found = unroll(network, optimizer, made, losses, validation, {"logits": policy.logits}, total=images)
        mean_found = mean_found + chance.detach() * found["logits"]
    (expected,) = torch.autograd.grad(mean_loss, policy.logits)
    assert expected.abs().min() > 0
    assert (mean_found - expected).norm() < 1e-3 * expected.norm()

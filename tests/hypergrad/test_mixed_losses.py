"""Losses that couple an image with its copies: every engine against differences of the gradient of training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny_nets import CLASSES, N, Problem, Samples, assert_agree, build, images, relative, target, weights_of
from torch import Tensor
from torch.func import functional_call

from fastaug.hypergrad import ENGINES
from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.fused import training_pass
from fastaug.hypergrad.engines.self_check import self_test
from fastaug.hypergrad.problem import Weights
from fastaug.losses import mixed_losses
from fastaug.targets import SoftTarget

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

COPIES, STEP = 3, 1e-6
FACTORS = {"clean": 0.8, "copied": 0.6, "consistency": 1.7}


def coupled(name: str, detach: bool) -> tuple[Problem, Weights]:
    """N / 4 images with three copies each, and a direction."""
    network = build(name)
    losses = partial(mixed_losses, reduction="none", copies=COPIES, detach=detach, **FACTORS)
    samples = Samples(images(N), target(N))
    made = Problem(network, weights_of(network), samples, losses, N // 4, seed=7, views=1 + COPIES, one_sided=detach)
    g = torch.Generator().manual_seed(0)
    return made, {n: torch.randn(w.shape, generator=g, dtype=w.dtype) for n, w in made.weights.items()}


def slope(problem: Problem, direction: Weights, pixels: Tensor, goal: SoftTarget, detach: bool) -> float:
    """<direction, grad_w L>, L written anew with torch's detach, by first derivatives alone."""
    weights = {name: w.detach().requires_grad_() for name, w in problem.weights.items()}
    torch.manual_seed(problem.seed)
    buffers = {name: b.clone() for name, b in problem.network.named_buffers()}
    logs = functional_call(problem.network, {**weights, **buffers}, (pixels,)).log_softmax(1)
    n = N // 4
    dense = (goal.mass[:, :, None] * torch.nn.functional.one_hot(goal.classes, CLASSES)).sum(1)
    dense = dense + (1 - goal.mass.sum(1, keepdim=True)) / CLASSES
    entropy = -(dense * logs).sum(1)
    first = logs[:n].detach() if detach else logs[:n]
    loss = FACTORS["clean"] * (goal.weight[:n] * entropy[:n]).sum()
    for copy in range(1, 1 + COPIES):
        rows = slice(copy * n, (copy + 1) * n)
        apart = (first.exp() * (first - logs[rows])).sum(1)
        own = FACTORS["copied"] * entropy[rows] + FACTORS["consistency"] * apart
        loss = loss + (goal.weight[rows] * own).sum() / COPIES
    found = torch.autograd.grad(loss / n, list(weights.values()))
    return float(sum((direction[name] * g).sum() for name, g in zip(weights, found, strict=True)))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", ["smooth", "layer_norm"])
def test_every_engine_follows_the_gradient_of_training(name: str, detach: bool) -> None:
    problem, direction = coupled(name, detach)
    samples = problem.samples
    found = {
        engine: ENGINES[engine](problem, direction, images=True) for engine in ("forward", "functional", "reverse")
    }
    assert_agree(found["forward"], found["reverse"])
    assert_agree(found["functional"], found["reverse"])

    def quotient(moved: Callable[[float], float]) -> float:
        return (moved(STEP) - moved(-STEP)) / (2 * STEP)

    g = torch.Generator().manual_seed(3)
    exact = found["forward"]
    for field in ("images", "mass", "weight"):
        value = samples.images if field == "images" else getattr(samples.target, field)
        way = torch.randn(value.shape, generator=g, dtype=value.dtype)

        def along(step: float, field: str = field, value: Tensor = value, way: Tensor = way) -> float:
            moved = value + step * way
            pixels = moved if field == "images" else samples.images
            goal = samples.target if field == "images" else samples.target._replace(**{field: moved})
            return slope(problem, direction, pixels, goal, detach)

        expected = torch.tensor(quotient(along))
        assert relative((getattr(exact, field) * way).sum().float(), expected) < 1e-4, field


def test_the_constant_of_a_one_sided_loss_moves_with_the_weights() -> None:
    """What torch's detach under two derivatives would get wrong: BatchNorm leads from the copies' images to it."""
    problem, direction = coupled("smooth", detach=True)
    right = ENGINES["reverse"](problem, direction, images=True)
    wrong = ENGINES["reverse"](replace(problem, losses=with_detach), direction, images=True)
    assert relative(wrong.images, right.images) > 0.01


def with_detach(logits: Tensor, goal: SoftTarget) -> Tensor:
    plain = mixed_losses(logits, goal, "none", copies=COPIES, **(FACTORS | {"consistency": 0.0}))
    logs = logits.log_softmax(1)
    first = logs[: N // 4].detach().repeat(COPIES, 1)
    apart = (first.exp() * (first - logs[N // 4 :])).sum(1) * FACTORS["consistency"] / COPIES
    return plain + goal.weight * torch.cat([torch.zeros_like(plain[: N // 4]), apart])


@pytest.mark.parametrize("detach", [False, True])
def test_the_engine_in_the_training_pass_and_differences(detach: bool) -> None:
    problem, direction = coupled("smooth", detach)
    exact = ENGINES["reverse"](problem, direction, images=False)
    assert_agree(training_pass(problem, direction)[1], exact)
    if detach:
        with pytest.raises(ValueError, match="one-sided"):
            difference(problem, direction, images=False)
    else:
        assert_agree(difference(problem, direction, images=False, step=1e-5), exact, limit=1e-4)


@pytest.mark.parametrize("detach", [False, True])
def test_the_self_test_takes_whole_groups(detach: bool) -> None:
    said: list[str] = []
    problem, _ = coupled("batch_norm", detach)
    for count, pixels in ((3, True), (8, False)):
        assert self_test(problem, images=pixels, samples=count, say=said.append).chosen == "forward"
    assert detach == any("constant" in line for line in said)

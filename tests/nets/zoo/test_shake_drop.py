"""ShakeDrop against its three equations, and under the derivatives that training and the meta step take."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from fastaug.hypergrad import ENGINES
from fastaug.hypergrad.engines.self_check import self_test
from fastaug.hypergrad.problem import Problem, Samples
from fastaug.nets.recomputing import backward_pass
from fastaug.nets.zoo.pyramid_net import PyramidNet
from fastaug.nets.zoo.shake_drop import ShakeDrop
from fastaug.targets import SoftTarget, soft_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
N, CLASSES = 8, 5


def passes(keep: float, count: int = 120) -> Iterator[tuple[Tensor, Tensor]]:
    """Of passes with seeds of their own: the factors of each image's branch, and those of its gradient."""
    shake = ShakeDrop(keep)
    for seed in range(count):
        branch = torch.randn(6, 2, 2, 2, dtype=torch.float64).requires_grad_()
        torch.manual_seed(seed)
        out = shake(branch)
        torch.manual_seed(1000 + seed)  # nothing is drawn in the backward pass
        (gradient,) = torch.autograd.grad(out.sum(), branch)
        factor = out.detach() / branch.detach()
        for found in (factor, gradient):
            torch.testing.assert_close(found, found[:, :1, :1, :1].expand_as(found))  # one for each image
        yield factor[:, 0, 0, 0], gradient[:, 0, 0, 0]


def test_factors_are_those_of_the_paper() -> None:
    """b = 1 in a share `keep` of the passes and then nothing is scaled; else alpha and beta, of each image its own."""
    found = list(passes(0.75))
    kept = [bool((factor == 1).all()) and bool((gradient == 1).all()) for factor, gradient in found]
    assert sum(kept) / len(kept) == pytest.approx(0.75, abs=0.12)
    alpha, beta = (torch.stack([pair[k] for pair, whole in zip(found, kept, strict=True) if not whole]) for k in (0, 1))
    assert -1 <= alpha.min() < -0.9
    assert 0.9 < alpha.max() <= 1
    assert 0 <= beta.min() < 0.1
    assert 0.9 < beta.max() <= 1
    assert alpha.mean().abs() < 0.1
    assert beta.mean() == pytest.approx(0.5, abs=0.05)
    assert torch.corrcoef(torch.stack([alpha.flatten(), beta.flatten()]))[0, 1].abs() < 0.15
    assert alpha[0].unique().numel() == 6


def test_evaluation_has_the_expectation() -> None:
    branch = torch.randn(2, 3, 4, 4)
    assert torch.equal(ShakeDrop(0.75).eval()(branch), 0.75 * branch)


def test_types_draw_alike() -> None:
    branch = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    made = []
    for kind in (torch.float64, torch.float32):
        torch.manual_seed(3)
        made.append(ShakeDrop(0.0)(branch.to(kind)))
    torch.testing.assert_close(made[0], made[1].double(), atol=1e-6, rtol=0)


def test_the_last_block_is_shaken_most() -> None:
    network = PyramidNet(20, 12, num_classes=2, shakedrop=0.5)
    keeps = [module.keep for module in network.modules() if isinstance(module, ShakeDrop)]
    assert keeps == pytest.approx([1 - 0.5 * block / 9 for block in range(1, 10)])


def shaken() -> Problem:
    """The training problem of a thin PyramidNet of which every block is shaken in most passes."""
    torch.manual_seed(0)
    network = PyramidNet(8, 6, num_classes=CLASSES, shakedrop=0.9)
    images, classes = torch.randn(N, 3, 8, 8), torch.randint(CLASSES, (N, 2))
    target = SoftTarget(classes, torch.rand(N, 2) / 2, torch.rand(N) + 0.5)
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    losses = partial(soft_cross_entropy, reduction="none")
    return Problem(network, weights, Samples(images, target), losses, N, seed=5, one_sided=True)


def own_share(problem: Problem, direction: dict[str, Tensor]) -> Tensor:
    """<direction, grad_w of each sample's loss> [n], from the gradient of training, by first derivatives alone."""
    weights = {name: w.requires_grad_() for name, w in problem.weights.items()}
    torch.manual_seed(problem.seed)
    logits = torch.func.functional_call(problem.network, weights, (problem.samples.images,))
    target = problem.samples.target
    each = problem.losses(logits, target._replace(weight=torch.ones_like(target.weight))) / problem.total
    found = []
    for loss in each:
        gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
        found.append(sum((direction[name] * g).sum() for name, g in zip(weights, gradients, strict=True)))
    return torch.stack(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["forward", "functional", "reverse"])
def test_engines_follow_the_gradient_of_training(engine: str) -> None:
    """The derivative in loss weights, which that of the forward pass is not."""
    problem = shaken()
    draw = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(w.shape, generator=draw) for name, w in problem.weights.items()}
    expected = own_share(problem, direction)
    found = ENGINES[engine](problem, direction, images=False).weight
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_self_test_of_engines_passes_without_images_and_refuses_them() -> None:
    told: list[object] = []
    assert self_test(shaken(), images=False, say=told.append).chosen == "forward"
    with pytest.raises(ValueError, match="no engine can differentiate this network"):
        self_test(shaken(), images=True, say=told.append)


def test_recomputed_blocks_draw_the_same() -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        network = PyramidNet(8, 6, num_classes=3, shakedrop=0.9)
        network.set_grad_checkpointing(again)
        torch.manual_seed(1)
        loss = network(torch.randn(4, 3, 8, 8)).square().mean()
        with backward_pass(network, recomputes=again):
            loss.backward()
        found.append({name: p.grad for name, p in network.named_parameters()} | dict(network.named_buffers()))
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []

"""What a meta step relies on: magnitudes, score function, neutrality, eager passes, errors; and the order to avoid."""

import itertools
from copy import deepcopy
from dataclasses import replace

import pytest
import tiny_nets as nets
import torch
from tiny_nets import N, assert_agree, relative, some_problem, validation_loss, weights_of
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

from fastaug.hypergrad import ENGINES, hypergradient
from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.engines.fused import training_pass
from fastaug.hypergrad.engines.reverse import reverse
from fastaug.hypergrad.problem import Samples, network_logits, pull_back
from fastaug.targets import SoftTarget

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

EXACT = ("forward", "functional", "reverse")
LR = 0.3


def reverse_over_forward(problem, u):
    """The order that must not be used: a tangent differentiated in reverse mode."""
    images = problem.samples.images.clone().requires_grad_()
    with forward_ad.dual_level():
        weights = {name: forward_ad.make_dual(w, u[name]) for name, w in problem.weights.items()}
        logits = network_logits(problem, weights, images)
        loss = problem.losses(logits, problem.samples.target).sum() / problem.total
        tangent = forward_ad.unpack_dual(loss).tangent
    return torch.autograd.grad(tangent, images)[0]


@pytest.mark.parametrize(("name", "right"), [("batch_norm", False), ("group_norm", True)])
def test_reverse_over_forward_is_silently_wrong_through_batch_norm(name, right):
    problem, u = some_problem(name)

    def squares(z, target):  # log_softmax's tangent cannot be differentiated in reverse mode at all
        return target.weight * (z**2).sum(1)

    problem = replace(problem, losses=squares)
    expected = reverse(problem, u, images=True).images
    error = relative(reverse_over_forward(problem, u), expected)
    assert error < 1e-10 if right else error > 1e-2
    if not right:
        assert relative(forward(problem, u, images=True).images, expected) < 1e-10


def shaped(images, magnitudes):
    """Images turned, stretched, shifted, brightened and tinted by eight shared magnitudes."""
    turn, wide, right, down, shear, contrast, light, tint = magnitudes
    rows = [torch.stack([turn.cos() * (1 + wide), shear - turn.sin(), right])]
    rows.append(torch.stack([turn.sin(), turn.cos(), down]))
    grid = F.affine_grid(torch.stack(rows).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False) * (1 + contrast) + light
    return images * (1 + tint * torch.tensor([1.0, -1.0, 0.5], dtype=images.dtype)[:, None, None])


def retaken(network, magnitudes):
    """The validation loss after the step of gradient descent that the magnitudes lead to, and the weights then."""
    weights = {name: w.clone().requires_grad_() for name, w in nets.weights_of(network).items()}
    images, target = shaped(nets.images(32), magnitudes), nets.target(32)
    loss = nets.LOSSES(functional_call(network, weights, (images,)), target).sum() / 32
    gradients = torch.autograd.grad(loss, list(weights.values()))
    stepped = [(w - LR * g).detach().requires_grad_() for w, g in zip(weights.values(), gradients, strict=True)]
    after = dict(zip(weights, stepped, strict=True))
    return validation_loss(network, after), after


@pytest.mark.parametrize(
    ("name", "delta", "similarity"),
    [("smooth", 0.03, 0.99), ("batch_norm", 1e-7, 0.999999), ("smooth", 1e-6, 0.999999)],
)
def test_magnitudes_agree_with_brute_force_retaken_steps(name, delta, similarity):
    # Through ReLU a loss is jagged on the scale of .03: only much smaller steps see the derivative.
    network, start = nets.build(name), torch.full((8,), 0.05, dtype=torch.float64)
    loss, after = retaken(network, start)
    v = torch.autograd.grad(loss, list(after.values()))
    u = {name: -LR * g for name, g in zip(after, v, strict=True)}
    magnitudes = start.clone().requires_grad_()
    samples = Samples(shaped(nets.images(32), magnitudes), nets.target(32))
    found = hypergradient(nets.problem(network, samples), u, {"magnitudes": magnitudes})["magnitudes"]
    brute = []
    for step in delta * torch.eye(8, dtype=torch.float64):
        apart = retaken(network, start + step)[0] - retaken(network, start - step)[0]
        brute.append(apart.detach() / (2 * delta))
    assert F.cosine_similarity(found, torch.stack(brute), dim=0) >= similarity


@pytest.mark.parametrize("name", ["dropout", "attention", "timm"])
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_behind(engine, name):
    problem, u = some_problem(name)
    network = problem.network
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    before, generator = deepcopy(network.state_dict()), torch.get_rng_state()
    kept = {name: t.clone() for name, t in u.items()}
    ENGINES[engine](problem, u, images=engine != "difference")
    assert torch.equal(torch.get_rng_state(), generator)
    assert network.training
    assert all(torch.equal(t, kept[name]) for name, t in u.items())
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert all(torch.equal(w.grad, torch.ones_like(w)) and w.requires_grad for w in network.parameters())


def test_what_was_compiled_in_place_runs_eagerly():
    problem, u = some_problem()
    expected = forward(problem, u, images=True)

    def refuse(*_):  # a backend that is asked to compile something
        raise AssertionError("compiled")

    problem.network.compile(backend=refuse)
    problem.network[4].compile(backend=refuse)
    for engine in EXACT:
        assert_agree(ENGINES[engine](problem, u, images=True), expected)
    assert_agree(difference(problem, u, images=False), expected._replace(images=None), 0.05)


def test_the_forward_only_pass_records_no_graph():
    problem, u = some_problem()
    constant = {name: t for name, t in problem.weights.items() if not name.startswith("0.")}
    problem, u, seen = replace(problem, weights=constant), {name: u[name] for name in constant}, []
    problem.network[4].register_forward_hook(lambda *passed: seen.append(passed[2].requires_grad))
    forward(problem, u, images=False)
    assert seen == [False]


# ---- pulling back ----


def test_the_score_function_is_the_gradient_of_the_enumerated_expectation():
    network, count, shifts = nets.build("layer_norm"), 3, torch.tensor([-0.5, 0.0, 0.7])
    scores = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    base, target = nets.images(count), nets.target(count)
    u = {name: torch.randn_like(weight) for name, weight in nets.weights_of(network).items()}
    expected, estimate = 0.0, torch.zeros_like(scores)
    for draw in itertools.product(range(3), repeat=count):
        images = base + shifts[list(draw)][:, None, None, None]
        problem = nets.problem(network, Samples(images, target, scores.log_softmax(0)[list(draw)]))
        probability = scores.softmax(0)[list(draw)].prod()
        cotangent = forward(problem, u, images=False)
        expected = expected + probability * (target.weight * cotangent.weight).sum()  # <u, grad_w L>
        estimate = estimate + probability.detach() * pull_back(problem.samples, cotangent, {"scores": scores})["scores"]
    (brute,) = torch.autograd.grad(expected, scores)
    assert relative(estimate, brute) <= 1e-10


def test_two_processes_share_one_baseline():
    problem, u = some_problem("layer_norm")
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    drawn = torch.arange(N) % 3

    def samples(part):
        whole = problem.samples
        target = SoftTarget(*(None if t is None else t[part] for t in whole.target))
        return Samples(whole.images[part], target, scores.log_softmax(0)[drawn[part]])

    def locally(part, over_processes):
        local = replace(problem, samples=samples(part))
        return hypergradient(local, u, {"scores": scores}, over_processes=over_processes)["scores"]

    sums = []
    for part in (slice(0, 3), slice(3, N)):
        locally(part, lambda local: sums.append(local) or local)
    both = [locally(part, lambda _: sums[0] + sums[1]) for part in (slice(0, 3), slice(3, N))]
    assert relative(both[0] + both[1], locally(slice(0, N), lambda local: local)) <= 1e-10


def test_a_parameter_that_nothing_depends_on_gets_zeros():
    problem, u = some_problem()
    unused, used = torch.ones(2, requires_grad=True), torch.ones(N, dtype=torch.float64, requires_grad=True)
    assert hypergradient(problem, u, {"unused": unused})["unused"].tolist() == [0, 0]
    problem = replace(problem, samples=Samples(problem.samples.images, problem.samples.target._replace(weight=used)))
    found = hypergradient(problem, u, {"used": used, "unused": unused})
    assert list(found) == ["used", "unused"]
    assert found["unused"].tolist() == [0, 0]
    assert found["used"].abs().min() > 0


# ---- errors ----


def test_an_unknown_engine_and_a_direction_that_does_not_fit():
    problem, u = some_problem()
    with pytest.raises(ValueError, match="known: forward, functional, reverse, difference"):
        hypergradient(problem, u, {}, "dual")
    with pytest.raises(ValueError, match=r"1 tensors, among them 0\.biased"):
        hypergradient(problem, {**u, "0.biased": u["0.bias"]}, {})
    with pytest.raises(ValueError, match="names no weights"):
        hypergradient(problem, {}, {})
    with pytest.raises(ValueError, match=r"1 tensors, among them 0\.bias"):
        hypergradient(problem, {**u, "0.bias": torch.zeros(1)}, {})


@pytest.mark.parametrize("name", ["batch_norm", "dropout", "drop_path", "group_norm", "timm"])
def test_the_fused_pass_trains_bit_for_bit_and_gives_what_the_forward_engine_gives(name):
    problem, u = some_problem(name, rows=True)
    problem = replace(problem, network=problem.network.float())
    problem = replace(problem, weights=weights_of(problem.network))
    samples = Samples(problem.samples.images.float(), problem.samples.target)
    problem, u = replace(problem, samples=samples), {n: t.float() for n, t in u.items()}
    plain, expected = deepcopy(problem.network), forward(problem, u, images=False)

    torch.manual_seed(problem.seed)
    logits, found = training_pass(problem, u)
    problem.losses(logits, samples.target).sum().backward()
    drawn = torch.get_rng_state()
    torch.manual_seed(problem.seed)
    problem.losses(plain(samples.images), samples.target).sum().backward()

    assert_agree(found, expected, 1e-4)
    assert torch.equal(torch.get_rng_state(), drawn)
    states = zip(problem.network.state_dict().values(), plain.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    weights = zip(problem.network.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in weights)

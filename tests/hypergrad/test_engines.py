"""The engines against one-step unrolls of `higher`, brute force and enumeration, in float64."""

import itertools
from copy import deepcopy
from dataclasses import replace
from functools import partial

import higher
import nets
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastaug.hypergrad import ENGINES, hypergradient
from fastaug.hypergrad.difference import difference
from fastaug.hypergrad.forward import forward
from fastaug.hypergrad.problem import Samples, network_logits, pull_back
from fastaug.hypergrad.reverse import reverse
from fastaug.losses import LOSSES
from fastaug.targets import SoftTarget, softness

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

EXACT = ("forward", "functional", "reverse")
LR, N = 0.3, 8
RULES = {
    "plain": ({}, 1.0),
    "momentum": ({"momentum": 0.9, "weight_decay": 0.01}, 1.0),
    "dampening": ({"momentum": 0.9, "dampening": 0.4}, 0.6),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, 1.9),
}


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


class Learned:
    """Meta-parameters of every kind and the samples that they make of fixed images and masses."""

    def __init__(self, rows=True):
        g = torch.Generator().manual_seed(3)
        self.images, self.target = nets.images(N), nets.target(N)
        self.seen = torch.rand(N, generator=g, dtype=torch.float64)
        start = {
            "weight": torch.rand(N, generator=g, dtype=torch.float64),
            "exponent": torch.tensor(2.0, dtype=torch.float64),
            "brightness": torch.tensor(0.1, dtype=torch.float64),
            "angle": torch.tensor(0.2, dtype=torch.float64),
        }
        if rows:
            start["rows"] = torch.randn(N, 2, nets.CLASSES, generator=g, dtype=torch.float64)
        self.parameters = {name: value.requires_grad_() for name, value in start.items()}

    def samples(self):
        p = self.parameters
        c, s, zero = p["angle"].cos(), p["angle"].sin(), torch.zeros((), dtype=torch.float64)
        turn = torch.stack([torch.stack([c, -s, zero]), torch.stack([s, c, zero])]).expand(N, 2, 3)
        grid = F.affine_grid(turn, list(self.images.shape), align_corners=False)
        images = F.grid_sample(self.images, grid, align_corners=False) + p["brightness"]
        mass = self.target.mass * softness(self.seen, p["exponent"])[:, None]
        rows = p["rows"].softmax(-1) if "rows" in p else None
        return Samples(images, SoftTarget(self.target.classes, mass, p["weight"], rows))


def validation_loss(network, weights=None):
    """On other images, in training mode with a seed of its own."""
    torch.manual_seed(11)
    images, target = nets.images(N, 21), nets.target(N, 22)
    logits = network(images) if weights is None else functional_call(network, weights, (images,))
    return nets.LOSSES(logits, target).mean()


def started(network, options):
    """SGD that has made one step, so that there is momentum."""
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, **options)
    nets.LOSSES(network(nets.images(N, 31)), nets.target(N, 32)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def unrolled(network, optimizer, learned, seed):
    """One step by `higher` and its loss, differentiated in every meta-parameter."""
    leaves = list(learned.parameters.values())
    with (
        sdpa_kernel(SDPBackend.MATH),
        higher.innerloop_ctx(network, optimizer, track_higher_grads=True) as (copy, steps),
    ):
        samples = learned.samples()
        torch.manual_seed(seed)
        steps.step(nets.LOSSES(copy(samples.images), samples.target).sum() / N)
        return torch.autograd.grad(validation_loss(copy), leaves)


def direction(network, optimizer, problem, factor):
    """u = -lr factor v with v at w' after torch's own step."""
    retaken, samples = deepcopy(network), problem.samples
    again = type(optimizer)(retaken.parameters(), **optimizer.defaults)
    again.load_state_dict(optimizer.state_dict())
    torch.manual_seed(problem.seed)
    (nets.LOSSES(retaken(samples.images.detach()), samples.target).sum() / N).backward()
    again.step()
    again.zero_grad()
    validation_loss(retaken).backward()
    return {name: -LR * factor * weight.grad for name, weight in retaken.named_parameters()}


@pytest.mark.parametrize(
    ("name", "rule"), [(name, "momentum") for name in nets.NETS] + [("dropout", rule) for rule in RULES]
)
def test_every_meta_parameter_agrees_with_a_step_unrolled_by_higher(name, rule):
    network, (options, factor) = nets.build(name), RULES[rule]
    optimizer, learned = started(network, options), Learned()
    problem = nets.problem(network, learned.samples())
    expected = unrolled(network, optimizer, learned, problem.seed)
    u = direction(network, optimizer, problem, factor)
    for engine in EXACT:
        problem = replace(problem, samples=learned.samples())
        if engine == "forward" and name == "group_norm":
            with pytest.raises(NotImplementedError, match="group_norm"):
                hypergradient(problem, u, list(learned.parameters.values()), engine)
            continue
        found = hypergradient(problem, u, list(learned.parameters.values()), engine)
        for parameter, mine, theirs in zip(learned.parameters, found, expected, strict=True):
            assert relative(mine, theirs) <= 1e-10, (engine, parameter)


def some_problem(name="batch_norm", rows=False, seed=0):
    """A problem without meta-parameters, and a direction."""
    network = nets.build(name, seed)
    problem = nets.problem(network, Samples(nets.images(N), nets.target(N, rows=rows)))
    g = torch.Generator().manual_seed(seed)
    return problem, {n: torch.randn(w.shape, generator=g, dtype=w.dtype) for n, w in problem.weights.items()}


def parts(cotangent):
    return {name: part for name, part in cotangent._asdict().items() if part is not None}


def assert_agree(found, expected, limit=1e-10):
    assert parts(found).keys() == parts(expected).keys()
    for name, part in parts(found).items():
        assert relative(part, getattr(expected, name)) <= limit, name


# ---- every loss, every shape of the problem ----


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_differentiated_in_targets_and_images(loss, rows):
    problem, u = some_problem(rows=rows)
    problem = replace(problem, losses=partial(LOSSES[loss], reduction="none"))
    expected = reverse(problem, u, images=True)
    assert_agree(ENGINES["forward"](problem, u, images=True), expected)
    assert_agree(ENGINES["functional"](problem, u, images=True), expected)
    assert_agree(forward(problem, u, images=False), expected._replace(images=None))


def test_frozen_weights_stay_constant():
    problem, u = some_problem()
    trained = [name for name in problem.weights if not name.startswith("1.")]
    problem = replace(problem, weights={name: problem.weights[name] for name in trained})
    u = {name: u[name] for name in trained}
    assert_agree(forward(problem, u, images=True), reverse(problem, u, images=True))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_one_frozen_half_of_batch_norm(frozen):
    problem, u = some_problem()
    trained = [name for name in problem.weights if name != f"1.{frozen}"]
    problem = replace(problem, weights={name: problem.weights[name] for name in trained})
    assert_agree(forward(problem, u, images=True), reverse(problem, u, images=True))


def test_batch_norm_of_vectors_with_a_scale_of_zero():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * nets.SIDE**2, nets.CLASSES))
    network = network.append(torch.nn.BatchNorm1d(nets.CLASSES)).double()
    network[2].weight.data[0] = 0
    problem = nets.problem(network, Samples(nets.images(N), nets.target(N)))
    u = {name: torch.randn_like(weight) for name, weight in problem.weights.items()}
    assert_agree(forward(problem, u, images=True), reverse(problem, u, images=True))


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12])
def test_a_direction_of_any_length(engine, scale):
    problem, u = some_problem()
    expected = parts(ENGINES[engine](problem, u, images=True))
    found = parts(ENGINES[engine](problem, {name: scale * t for name, t in u.items()}, images=True))
    for name in expected:
        torch.testing.assert_close(found[name], scale * expected[name], rtol=1e-8, atol=0)


def test_a_direction_that_is_not_finite_gives_no_number():
    problem, u = some_problem()
    u["0.weight"][0] = torch.nan
    assert not forward(problem, u, images=False).weight.isfinite().any()


@pytest.mark.parametrize("engine", EXACT)
def test_single_precision_and_bf16_autocast(engine):
    problem, u = some_problem()
    expected = reverse(problem, u, images=True)
    target = problem.samples.target
    narrow = replace(
        problem,
        network=problem.network.float(),
        weights={name: w.float() for name, w in problem.weights.items()},
        samples=Samples(problem.samples.images.float(), target._replace(mass=target.mass.float())),
    )
    u = {name: t.float() for name, t in u.items()}
    assert_agree(ENGINES[engine](narrow, u, images=True), expected, 1e-4)
    narrow = replace(narrow, autocast=partial(torch.autocast, "cpu", torch.bfloat16))
    found = ENGINES[engine](narrow, u, images=True)
    assert relative(found.weight, expected.weight) < 0.3
    assert F.cosine_similarity(found.images.flatten(), expected.images.flatten(), dim=0) > 0.9


# ---- traps ----


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
    ("name", "delta", "similarity"), [("smooth", 0.03, 0.99), ("batch_norm", 1e-7, 0.999999), ("smooth", 1e-6, 0.999999)]
)
def test_magnitudes_agree_with_brute_force_retaken_steps(name, delta, similarity):
    # Through ReLU a loss is jagged on the scale of .03: only much smaller steps see the derivative.
    network, start = nets.build(name), torch.full((8,), 0.05, dtype=torch.float64)
    loss, after = retaken(network, start)
    v = torch.autograd.grad(loss, list(after.values()))
    u = {name: -LR * g for name, g in zip(after, v, strict=True)}
    magnitudes = start.clone().requires_grad_()
    samples = Samples(shaped(nets.images(32), magnitudes), nets.target(32))
    (found,) = hypergradient(nets.problem(network, samples), u, [magnitudes])
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

    def refuse(graph, inputs):  # a backend that is asked to compile something
        raise AssertionError("compiled")

    problem.network.compile(backend=refuse)
    problem.network[4].compile(backend=refuse)
    for engine in EXACT:
        assert_agree(ENGINES[engine](problem, u, images=True), expected)
    assert_agree(difference(problem, u, images=False), expected._replace(images=None), 0.05)


def test_the_forward_only_pass_records_no_graph():
    problem, u = some_problem()
    seen = []
    problem.network[4].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    forward(problem, u, images=False)
    assert seen == [False]


# ---- finite differences ----


@pytest.mark.parametrize("rows", [False, True])
def test_difference_is_central_and_exact_for_small_steps(rows):
    problem, u = some_problem("layer_norm", rows=rows)
    expected = reverse(problem, u, images=False)
    assert_agree(difference(problem, u, images=False), expected, 1e-2)
    assert_agree(difference(problem, u, images=False, step=1e-5), expected, 1e-7)
    logits = network_logits(problem, problem.weights, problem.samples.images)
    assert_agree(difference(problem, u, images=False, step=1e-6, logits=logits), expected, 1e-4)


def test_difference_refuses_images():
    problem, u = some_problem()
    with pytest.raises(ValueError, match="kinks"):
        difference(problem, u, images=True)


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
        estimate = estimate + probability.detach() * pull_back(problem.samples, cotangent, [scores])[0]
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
        return hypergradient(local, u, [scores], over_processes=over_processes)[0]

    sums = []
    for part in (slice(0, 3), slice(3, N)):
        locally(part, lambda local: sums.append(local) or local)
    both = [locally(part, lambda _: sums[0] + sums[1]) for part in (slice(0, 3), slice(3, N))]
    assert relative(both[0] + both[1], locally(slice(0, N), lambda local: local)) <= 1e-10


def test_a_parameter_that_nothing_depends_on_gets_zeros():
    problem, u = some_problem()
    unused, used = torch.ones(2, requires_grad=True), torch.ones(N, dtype=torch.float64, requires_grad=True)
    assert hypergradient(problem, u, [unused])[0].tolist() == [0, 0]
    problem = replace(problem, samples=Samples(problem.samples.images, problem.samples.target._replace(weight=used)))
    found = hypergradient(problem, u, [unused, used])
    assert found[0].tolist() == [0, 0]
    assert found[1].abs().min() > 0


# ---- errors ----


def test_an_unknown_engine_and_a_direction_that_does_not_fit():
    problem, u = some_problem()
    with pytest.raises(ValueError, match="known: forward, functional, reverse, difference"):
        hypergradient(problem, u, [], "dual")
    with pytest.raises(ValueError, match=r"1 tensors, among them 0\.bias"):
        hypergradient(problem, {name: t for name, t in u.items() if name != "0.bias"}, [])
    with pytest.raises(ValueError, match=r"1 tensors, among them 0\.bias"):
        hypergradient(problem, {**u, "0.bias": torch.zeros(1)}, [])

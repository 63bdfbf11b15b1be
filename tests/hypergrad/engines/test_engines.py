"""The engines against one-step unrolls of `higher`, brute force and enumeration, in float64."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import higher
import pytest
import tiny_nets as nets
import torch
from tiny_nets import N, assert_agree, parts, relative, some_problem, validation_loss
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastaug.hypergrad import ENGINES, hypergradient
from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.engines.reverse import reverse
from fastaug.hypergrad.problem import Samples, network_logits
from fastaug.losses import LOSSES
from fastaug.targets import SoftTarget, softness

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

EXACT = ("forward", "functional", "reverse")
LR = 0.3
RULES = {
    "plain": ({}, 1.0),
    "momentum": ({"momentum": 0.9, "weight_decay": 0.01}, 1.0),
    "dampening": ({"momentum": 0.9, "dampening": 0.4}, 0.6),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, 1.9),
}


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
                hypergradient(problem, u, learned.parameters, engine)
            continue
        found = hypergradient(problem, u, learned.parameters, engine)
        for parameter, theirs in zip(learned.parameters, expected, strict=True):
            assert relative(found[parameter], theirs) <= 1e-10, (engine, parameter)


def test_batchnorm_that_holds_its_statistics():
    """As `model.freeze` leaves it: in evaluation mode, its weights constants."""
    problem, u = some_problem()
    norms = [name for name, module in problem.network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    problem.network.get_submodule(norms[0]).eval()
    trained = [name for name in problem.weights if not name.startswith(f"{norms[0]}.")]
    problem = replace(problem, weights={name: problem.weights[name] for name in trained})
    u = {name: u[name] for name in trained}
    expected = reverse(problem, u, images=True)
    for engine in ("forward", "functional"):
        assert_agree(ENGINES[engine](problem, u, images=True), expected)


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
    u = {name: u[name] for name in trained}
    assert_agree(forward(problem, u, images=True), reverse(problem, u, images=True))


@pytest.mark.parametrize(
    ("engine", "images"), [*((engine, True) for engine in EXACT), *((engine, False) for engine in ENGINES)]
)
def test_a_direction_that_leaves_out_weights_is_0_in_them(engine, images):
    problem, u = some_problem()
    last = list(u)[-2:]
    zeros = {name: t if name in last else torch.zeros_like(t) for name, t in u.items()}
    found = ENGINES[engine](problem, {name: u[name] for name in last}, images=images)
    assert found.mass.abs().max() > 1e-6
    assert_agree(found, ENGINES[engine](problem, zeros, images=images))


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

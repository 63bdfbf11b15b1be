import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import BinaryCrossEntropy

from fastaug import targets as T
from fastaug.losses import LOSSES, published_weighting, soft_bce, soft_focal, soft_kl, symmetric_kl
from fastaug.targets import SoftTarget, soft_cross_entropy

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


def problem(seed, batch=5, num_classes=6, rows=False, weight=None):
    """(logits [B,C], target) in float64; the first pair is of one class, the second of two."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randint(0, num_classes, (batch, 2), generator=g)
    pairs[:2] = torch.tensor([[1, 1], [1, 0]])
    shares = (0.01 + torch.rand(batch, 3, generator=g, dtype=torch.float64)).log().softmax(1)[:, :2]
    soft = torch.randn(batch, 2, num_classes, generator=g, dtype=torch.float64).softmax(-1) if rows else None
    weight = torch.rand(batch, generator=g, dtype=torch.float64) if weight is None else weight
    logits = 3 * torch.randn(batch, num_classes, generator=g, dtype=torch.float64)
    return logits, SoftTarget(pairs, shares, weight, soft)


def definition(name, logits, t):
    """Losses [B] from the target written out, t [B,C]."""
    p = logits.softmax(1)
    terms = {
        "ce": -t * p.log(),
        "kl": F.kl_div(p.log(), t, reduction="none"),
        "symmetric_kl": (t * (t / p).log() + p * (p / t).log()) / 2,
        "focal": -t * (1 - p) ** 2 * p.log(),
        "gce": t * (1 - p**0.7) / 0.7,
        "bce": -(t * logits.sigmoid().log() + (1 - t) * (-logits).sigmoid().log()) / p.shape[1],
    }
    return terms[name].sum(1)


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 2**32), rows=st.booleans(), num_classes=st.integers(2, 30))
@settings(max_examples=25)
def test_each_loss_equals_its_dense_definition(name, seed, rows, num_classes):
    logits, target = problem(seed, num_classes=num_classes, rows=rows)
    expected = definition(name, logits, T.dense(target, num_classes)) * target.weight
    loss = LOSSES[name]
    torch.testing.assert_close(loss(logits, target, "none"), expected)
    torch.testing.assert_close(loss(logits, target, "sum"), expected.sum())
    torch.testing.assert_close(loss(logits, target), expected.sum() / 5)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_in_logits_masses_weights_and_rows_in_both_modes(name, rows):
    logits, target = problem(0, batch=3, num_classes=4, rows=rows)
    inputs = [logits, target.mass, target.weight] + ([target.rows] if rows else [])

    def loss(logits, mass, weight, rows=None):
        return LOSSES[name](logits, SoftTarget(target.classes, mass, weight, rows), "none")

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs], check_forward_ad=True)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_by_torch_func_agrees_with_reverse_mode(name, rows):
    logits, target = problem(1, rows=rows)
    inputs = (logits, target.mass, target.weight)
    tangents = tuple(torch.randn_like(x) for x in inputs)

    def loss(logits, mass, weight):
        return LOSSES[name](logits, target._replace(mass=mass, weight=weight))

    gradients = torch.func.grad(loss, argnums=(0, 1, 2))(*inputs)
    _, tangent = torch.func.jvp(loss, inputs, tangents)
    torch.testing.assert_close(tangent, sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))


# ---- the traps: pairs of one class, nothing visible, everything visible, k < 1 ----


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_value_and_every_derivative_are_finite_at_the_corners(name, dtype, k):
    classes = torch.tensor([[0, 0], [0, 1], [2, 1], [1, 1], [2, 2], [2, 0]])
    v = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, 0.5], requires_grad=True)
    lam = torch.tensor([1.0, 0.3, 1.0, 0.5, 0.5, 0.0], requires_grad=True)
    exponent = torch.tensor(k, requires_grad=True)
    extreme = torch.zeros(6, 3)
    extreme[2, 2], extreme[3, 0] = 200, 200  # surely right, surely wrong
    logits = extreme.to(dtype).requires_grad_()
    mass = torch.stack([lam, 1 - lam], 1) * T.softness(v, exponent)[:, None]
    mass.retain_grad()
    target = T.mixed_target(classes, mass, torch.ones(6, 2))
    losses = LOSSES[name](logits, target, "none")
    assert losses.isfinite().all()
    losses.sum().backward()
    for leaf in (logits, mass, lam, v, exponent):
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["kl", "symmetric_kl"])
def test_a_pair_of_one_class_is_one_mass(name):
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    pair = SoftTarget(torch.tensor([[3, 3]]), torch.tensor([[0.4, 0.5]], dtype=torch.float64), one)
    single = SoftTarget(torch.tensor([[3, 0]]), torch.tensor([[0.9, 0.0]], dtype=torch.float64), one)
    torch.testing.assert_close(LOSSES[name](logits, pair), LOSSES[name](logits, single))


def test_kl_is_zero_at_the_target_and_cross_entropy_for_a_hard_label():
    logits, target = problem(4)
    at_target = soft_kl(T.dense(target, 6).log(), target, "none")
    torch.testing.assert_close(at_target, torch.zeros_like(at_target), atol=1e-10, rtol=0)
    hard = T.hard_target(torch.tensor([0, 1, 2, 3, 4]))
    torch.testing.assert_close(soft_kl(logits, hard), soft_cross_entropy(logits, hard))


@pytest.mark.parametrize("eps", [1e-2, 1e-6])
def test_symmetric_kl_of_a_hard_label_is_bounded_by_eps(eps):
    logits = torch.tensor([[-50.0, 50.0]], dtype=torch.float64)  # sure of the wrong class
    got = symmetric_kl(logits, T.hard_target(torch.tensor([0])), eps=eps)
    assert math.isclose(got, (100 + math.log(1 / eps)) / 2, rel_tol=1e-6)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("kind", ["hard", "pair", "rows"])
def test_a_class_that_is_ruled_out_costs_nothing_unless_it_is_named(name, kind):
    """A logit of -inf gives what a very low one does, derivatives too."""
    pair = torch.tensor([[0, 1]]), torch.tensor([[0.7, 0.3]]), torch.ones(1)
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(1, 2, 4)
    target = T.hard_target(torch.tensor([0])) if kind == "hard" else SoftTarget(*pair, rows if kind == "rows" else None)
    found = []
    for low in (-math.inf, -80.0):
        logits = torch.tensor([[1.0, 2.0, low, 0.5]], requires_grad=True)
        loss = LOSSES[name](logits, target)
        found.append(torch.cat([loss[None].detach(), *torch.autograd.grad(loss, logits)[0]]))
    torch.testing.assert_close(*found)
    if name == "ce" and kind == "hard":
        assert math.isclose(found[0][0], F.cross_entropy(logits.detach(), torch.tensor([0])), rel_tol=1e-6)
    assert (
        LOSSES[name](torch.tensor([[1.0, 2.0, -math.inf]]), T.hard_target(torch.tensor([2]))) > (name != "gce") * 1e30
    )


# ---- options, libraries ----


def test_focal_without_exponent_is_cross_entropy():
    logits, target = problem(1)
    torch.testing.assert_close(soft_focal(logits, target, gamma=0.0), soft_cross_entropy(logits, target))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_has_finite_derivatives_where_the_label_is_certain(gamma):
    logits = torch.tensor([[300.0, 0, 0]], requires_grad=True)
    soft_focal(logits, T.hard_target(torch.tensor([0])), gamma=gamma).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(5))
def test_bce_is_that_of_timm(sum_classes, threshold, seed):
    logits, target = problem(seed, weight=torch.ones(5, dtype=torch.float64))
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold, sum_classes=sum_classes)
    ours = soft_bce(logits, target, target_threshold=threshold, sum_classes=sum_classes)
    torch.testing.assert_close(ours, theirs(logits, T.dense(target, 6)))


def test_a_class_at_the_bce_threshold_is_off():
    hard, half = T.hard_target(torch.tensor([0])), T.smoothed(T.hard_target(torch.tensor([0])), 0.5)
    logits = torch.tensor([[1.0, -2.0]])
    expected = soft_bce(logits, hard)
    torch.testing.assert_close(soft_bce(logits, hard, target_threshold=0.0), expected)
    torch.testing.assert_close(soft_bce(logits, half, target_threshold=0.25), expected)


def test_published_weighting_is_the_mean_of_the_outer_product():
    logits, target = problem(2)
    unweighted = target._replace(weight=torch.ones_like(target.weight))
    losses = soft_kl(logits, unweighted, "none")
    released = (target.weight[:, None] * losses).mean()  # [B,1] times [B]
    torch.testing.assert_close(published_weighting(losses, target.weight), released)
    assert not torch.isclose(released, soft_kl(logits, target))


# ---- precision, compilation, errors ----


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_evaluated_in_float32(name):
    logits = (4 * torch.randn(4, 100, generator=torch.Generator().manual_seed(2))).bfloat16()
    target = T.smoothed(T.hard_target(torch.arange(4)), 0.1)
    got = LOSSES[name](logits, target)
    assert got.dtype == torch.float32
    exact = LOSSES[name](logits.double(), target)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "name", ["ce", *(pytest.param(name, marks=pytest.mark.slow) for name in LOSSES if name != "ce")]
)
def test_one_graph_under_compile_with_gradients(name):
    logits, target = problem(3)
    logits.requires_grad_()

    def step(logits, target):
        return LOSSES[name](logits, target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    eager, graph = step(logits, target), compiled(logits, target)
    torch.testing.assert_close(graph, eager)
    torch.testing.assert_close(torch.autograd.grad(graph, logits), torch.autograd.grad(eager, logits))


@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_do_not_fit_and_unknown_reductions_are_named(name):
    target = T.hard_target(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"same B.*\(3, 4\)"):
        LOSSES[name](torch.zeros(3, 4), target)
    with pytest.raises(ValueError, match=r"reduction.*'avg'"):
        LOSSES[name](torch.zeros(2, 4), target, "avg")


def test_a_negative_focal_exponent_is_named():
    with pytest.raises(ValueError, match=r"gamma.*-1"):
        soft_focal(torch.zeros(2, 4), T.hard_target(torch.tensor([0, 1])), gamma=-1)

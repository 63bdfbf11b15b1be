import copy
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastaug.augment.differentiable_ops import (
    EIGHT,
    apply_drawn,
    compose,
    moving,
    rotation,
    translation_x,
    translation_y,
    warp,
)
from fastaug.augment.sequence_policy import SequencePolicy
from fastaug.augment.shared_policy import Draws, SharedPolicy
from fastaug.errors import NonFiniteError
from fastaug.hypergrad.problem import Cotangent, Samples, pull_back
from fastaug.seeding import Key, Stream
from fastaug.targets import hard_target

KEY = Key(seed=7, epoch=2, stream=Stream.LEARNED)
KINDS = 1 + len(EIGHT)
NUMBER = {t.name: k for k, t in enumerate(EIGHT, 1)}


def uneven(slots=2, seed=0, dtype=torch.float64, scale=0.7):
    """A policy with unequal logits and magnitudes."""
    policy = SharedPolicy(slots=slots).to(dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=g, dtype=dtype)
    return policy


def images(n, side=16, seed=0, dtype=torch.float64):
    small = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return 0.1 + 0.8 * torch.nn.functional.interpolate(small, (side, side), mode="bilinear")


def every_pair():
    """All draws of two slots."""
    grid = torch.cartesian_prod(torch.arange(KINDS), torch.arange(KINDS))
    return Draws(grid, torch.zeros(grid.shape))


def cells(draws):
    """How often each pair of operations was drawn: [KINDS ** 2]."""
    return np.bincount((draws.op[:, 0] * KINDS + draws.op[:, 1]).numpy(), minlength=KINDS**2)


def joint(policy):
    """Probability of each pair of operations, on the graph."""
    p = policy.probabilities()
    return (p[0][:, None] * p[1]).flatten()


# ---- drawing ----


@settings(max_examples=25)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30, unique=True), st.integers(0, 2**31), st.integers(1, 3))
def test_draws_do_not_depend_on_the_batch_or_its_order(ids, seed, slots):
    policy, key = uneven(slots), KEY._replace(seed=seed)
    shuffled = random.Random(seed).sample(range(len(ids)), len(ids))
    for draw in (policy.sample, policy.gumbel_draws):
        together = draw(key, ids)
        some = draw(key, [ids[i] for i in shuffled])
        alone = draw(key, ids[:1])
        for whole, part, one in zip(together, some, alone, strict=True):
            assert torch.equal(whole[shuffled], part)
            assert torch.equal(whole[:1], one)


def test_draws_depend_on_seed_and_epoch_and_have_a_stream_of_their_own():
    policy, ids = uneven(), np.arange(200)
    for draw in (policy.sample, policy.gumbel_draws):
        base = draw(KEY, ids)
        for key in (KEY._replace(seed=8), KEY._replace(epoch=3)):
            assert all((a != b).any() for a, b in zip(base, draw(key, ids), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(base, draw(KEY.on(Stream.ORDER), ids), strict=True))
    assert torch.equal(policy.sample(KEY, ids).noise, policy.gumbel_draws(KEY, ids).noise)
    assert (policy.sample(KEY, ids).op != policy.gumbel_draws(KEY, ids).op).any()


def test_draws_are_on_the_host_and_leave_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    policy = SharedPolicy(slots=3)
    draws = policy.sample(KEY, np.arange(50))
    policy.relaxed(images(4, dtype=torch.float32), KEY, np.arange(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert (draws.op.dtype, draws.noise.dtype) == (torch.int64, torch.float32)
    assert (draws.op.shape, draws.noise.shape) == ((50, 3), (50, 3, 1))
    assert draws.op.device.type == draws.noise.device.type == "cpu"


@pytest.mark.parametrize("way", ["sample", "gumbel_draws"])
def test_frequencies_are_the_probabilities(way):
    policy, n = uneven(), 30_000
    draws = getattr(policy, way)(KEY, np.arange(n))
    expected = n * joint(policy).detach().numpy()
    assert expected.min() > 5
    assert stats.chisquare(cells(draws), expected).pvalue > 1e-3
    for slot in range(2):
        noise = draws.noise[:, slot, 0].numpy()
        assert stats.kstest(noise, "uniform", (-1, 2)).pvalue > 1e-3
        assert abs(stats.spearmanr(noise, draws.op[:, slot].numpy()).statistic) < 4 / n**0.5
    assert abs(np.corrcoef(draws.noise[..., 0].T.numpy())[0, 1]) < 4 / n**0.5


def test_an_operation_without_probability_is_never_drawn():
    policy = SharedPolicy(slots=1)
    with torch.no_grad():
        policy.logits[0, [0, 3, 8]] = -1e4
    assert set(policy.sample(KEY, np.arange(5000)).op.flatten().tolist()) == {1, 2, 4, 5, 6, 7}
    with torch.no_grad():
        policy.logits[0, 0] = 1e4
    assert not policy.sample(KEY, np.arange(5000)).op.any()


# ---- applying ----


def test_it_starts_as_asked():
    policy = SharedPolicy(slots=3, magnitude=0.3, identity=0.4)
    torch.testing.assert_close(policy.magnitudes(), torch.full((8,), 0.3))
    expected = torch.tensor([0.4] + [0.6 / 8] * 8).expand(3, 9)
    torch.testing.assert_close(policy.probabilities(), expected)
    assert {name: tuple(p.shape) for name, p in policy.named_parameters()} == {"logits": (3, 9), "strengths": (8,)}
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_amounts_are_noise_times_reach_times_magnitude():
    policy = uneven()
    draws = policy.sample(KEY, np.arange(40))
    amounts, magnitudes = policy.amounts(draws).tolist(), policy.magnitudes().tolist()
    for i in range(40):
        for s in range(2):
            k = int(draws.op[i, s])
            expected = float(draws.noise[i, s]) * EIGHT[k - 1].reach[0] * magnitudes[k - 1] if k else 0.0
            assert amounts[i][s] == pytest.approx([expected], rel=1e-12)
    x = images(40)
    fill = (0.1, 0.2, 0.3)
    filled = SharedPolicy(fill=fill)
    assert torch.equal(filled.apply(x, draws), apply_drawn(x, draws.op, filled.amounts(draws), fill=fill))


def test_noise_may_act_one_way_only_or_be_a_known_shift_and_each_number_has_its_own():
    known = moving("known", [30.0], rotation)._replace(noise=(1.0, 1.0))
    oneway = moving("oneway", [0.4, 0.2], lambda x, y: compose(translation_x(x), translation_y(y)))._replace(
        noise=(0.0, 1.0)
    )
    policy, n = SharedPolicy([known, oneway], slots=2, magnitude=0.5), 4000
    draws = policy.sample(KEY, np.arange(n))
    amounts = policy.amounts(draws).detach()
    assert amounts.shape == (n, 2, 2)
    turned, moved = amounts[draws.op == 1], amounts[draws.op == 2]
    torch.testing.assert_close(turned, torch.tensor([15.0, 0.0]).expand(len(turned), 2))
    for number, reach in enumerate((0.2, 0.1)):
        assert stats.kstest(moved[:, number].numpy(), "uniform", (0, reach)).pvalue > 1e-3
    assert abs(np.corrcoef(moved.T.numpy())[0, 1]) < 4 / len(moved) ** 0.5
    x = images(2, dtype=torch.float32)
    always = Draws(torch.ones(2, 1, dtype=torch.int64), torch.tensor([[[-1.0]], [[0.7]]]))
    shifted = SharedPolicy([known], slots=1, magnitude=0.999999).apply(x, always)
    torch.testing.assert_close(shifted, warp(x, rotation(torch.full((2,), 30.0))), atol=1e-3, rtol=0)


def test_the_gradient_in_the_magnitudes_is_that_of_finite_differences():
    policy, x, towards = uneven(), images(48), images(48, seed=1) - 0.4
    draws = policy.sample(KEY, np.arange(48))
    assert set(draws.op.flatten().tolist()) == set(range(KINDS))
    found = torch.autograd.grad(policy.apply(x, draws), policy.strengths, towards)[0]
    step = 1e-6
    for k in range(8):
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(policy)
            with torch.no_grad():
                moved.strengths[k] += sign * step
                ends.append(moved.apply(x, draws))
        expected = ((ends[0] - ends[1]) * towards).sum() / (2 * step)
        assert float(found[k]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


# ---- probabilities ----


def test_log_probability_is_that_of_enumeration():
    policy = uneven()
    log_p = policy.log_probability(every_pair())
    torch.testing.assert_close(log_p, joint(policy).log())
    assert float(log_p.detach().exp().sum()) == pytest.approx(1)
    single = uneven(slots=1)
    draws = single.sample(KEY, np.arange(30))
    torch.testing.assert_close(single.log_probability(draws), single.probabilities()[0][draws.op[:, 0]].log())


def test_the_score_function_has_the_true_gradient_as_its_mean():
    """Of E[f] for any f of the drawn operations: exactly by enumeration, statistically by drawing."""
    policy = uneven()
    f = torch.randn(KINDS**2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    true = torch.autograd.grad((joint(policy) * f).sum(), policy.logits)[0]
    log_p = policy.log_probability(every_pair())
    weighted = log_p.detach().exp() * f
    enumerated = torch.autograd.grad((weighted * log_p).sum(), policy.logits)[0]
    torch.testing.assert_close(enumerated, true)
    n = 40_000
    draws = policy.sample(KEY, np.arange(n))
    value = f[draws.op[:, 0] * KINDS + draws.op[:, 1]]
    estimate = torch.autograd.grad((value * policy.log_probability(draws)).mean(), policy.logits)[0]
    one_hot = torch.nn.functional.one_hot(draws.op, KINDS)
    error = (value[:, None, None] * (one_hot - policy.probabilities().detach())).std(0) / n**0.5
    assert ((estimate - true).abs() < 4.5 * error).all()
    assert (error < 0.2 * true.abs().max()).all()


def test_the_hypergradient_is_pulled_back_to_both_parameters():
    policy, x, n = uneven(), images(12), 12
    draws = policy.sample(KEY, np.arange(n))
    target = hard_target(torch.arange(n) % 3, torch.ones(n, dtype=torch.float64))
    shown = policy.apply(x, draws)
    samples = Samples(shown, target, policy.log_probability(draws))
    share = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pixels = images(n, seed=2) - 0.5
    cotangent = Cotangent(pixels, torch.zeros(n, 2), share, None)
    found = pull_back(samples, cotangent, dict(policy.named_parameters()))
    logits, strengths = found["logits"], found["strengths"]
    one_hot = torch.nn.functional.one_hot(draws.op, KINDS)
    others = (share.sum() - share) / (n - 1)
    scores = (share - others)[:, None, None] * (one_hot - policy.probabilities().detach())
    torch.testing.assert_close(logits, scores.sum(0))
    again = policy.apply(x, draws)
    torch.testing.assert_close(strengths, torch.autograd.grad(again, policy.strengths, pixels)[0])


def test_the_relaxed_images_are_exactly_those_of_one_operation_a_slot():
    policy, x, ids = uneven(dtype=torch.float32), images(20, dtype=torch.float32), np.arange(20)
    expected = policy.apply(x, policy.gumbel_draws(KEY, ids))
    for temperature in (0.1, 1.0, 10.0):
        assert torch.equal(policy.relaxed(x, KEY, ids, temperature), expected)
    with torch.no_grad():
        out = policy.relaxed(x, KEY, ids)
    assert torch.equal(out, expected)
    assert not out.requires_grad


def test_the_relaxed_images_cost_no_more_than_a_draw_where_no_gradient_is_wanted():
    calls = []

    def counted(images, amount):
        calls.append(len(amount))
        return images

    policy = SharedPolicy([EIGHT[4]._replace(apply=counted)], slots=2, identity=0.01)
    x, ids = images(8, dtype=torch.float32), np.arange(8)
    with torch.no_grad():
        policy.relaxed(x, KEY, ids)
    policy.requires_grad_(False)
    policy.relaxed(x, KEY, ids)
    assert len(calls) == 4
    policy.requires_grad_(True)
    policy.relaxed(x, KEY, ids)
    assert len(calls) > 8


def test_the_relaxed_gradient_is_that_of_the_mixture_of_operations():
    policy, x, ids, temperature = uneven(), images(6), np.arange(6), 0.7
    towards = images(6, seed=1) - 0.4
    out = policy.relaxed(x, KEY, ids, temperature)
    found = torch.autograd.grad(out, [policy.logits, policy.strengths], towards)
    assert all(g.isfinite().all() and g.any() for g in found)
    draws = policy.gumbel_draws(KEY, ids)
    logits = policy.logits.detach().clone().requires_grad_()
    gumbel = (policy._perturbed(KEY, ids) - policy.logits).detach()
    shares = ((logits + gumbel) / temperature).softmax(2)
    total = 0.0
    for i in range(6):
        for s in range(2):
            for k in range(KINDS):
                op = draws.op[i : i + 1].clone()
                op[0, s] = k
                with torch.no_grad():
                    other = policy.apply(x[i : i + 1], Draws(op, draws.noise[i : i + 1]))
                total = total + shares[i, s, k] * (other[0] * towards[i]).sum()
    torch.testing.assert_close(found[0], torch.autograd.grad(total, logits)[0])
    expected = torch.autograd.grad(policy.apply(x, draws), policy.strengths, towards)[0]
    torch.testing.assert_close(found[1], expected)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 100.0])
def test_the_relaxed_gradient_is_finite_at_any_temperature(temperature):
    policy = uneven(dtype=torch.float32, scale=5)
    out = policy.relaxed(images(8, dtype=torch.float32), KEY, np.arange(8), temperature)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), list(policy.parameters())))


# ---- forms ----


@pytest.mark.parametrize("form", [{"tau": 0.0}, {"mix": 0.0}, {"identity": None}])
def test_at_0_a_policy_is_exactly_uniform_whatever_its_logits(form):
    policy = SharedPolicy(**form)
    if "identity" not in form:
        with torch.no_grad():
            policy.logits.copy_(torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0)))
    p = policy.probabilities()
    assert (p == p[0, 0]).all()
    if "identity" not in form:
        (found,) = torch.autograd.grad(policy.log_probability(policy.sample(KEY, range(9))).sum(), policy.logits)
        assert not found.any()


@pytest.mark.parametrize("kind", [SharedPolicy, SequencePolicy])
@pytest.mark.parametrize("form", [{}, {"tau": 0.5}, {"mix": 0.3}])
def test_every_form_draws_as_probable_as_it_says(kind, form):
    policy, n = kind(EIGHT[:3], identity=0.3, **form), 20_000
    with torch.no_grad():
        policy.logits += torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(1))
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    chance = policy.log_probability(Draws(pairs, torch.zeros(16, 2, 1))).exp().detach()
    assert float(chance.sum()) == pytest.approx(1)
    op = policy.sample(KEY, np.arange(n)).op
    counts = np.bincount((op[:, 0] * 4 + op[:, 1]).numpy(), minlength=16)
    assert stats.chisquare(counts, n * chance.double().numpy() / float(chance.double().sum())).pvalue > 1e-3
    for slot in range(2):
        marginal = torch.stack([chance[pairs[:, slot] == k].sum() for k in range(4)])
        torch.testing.assert_close(policy.probabilities()[slot].detach(), marginal)
    plain = (policy.logits / 2 if form.get("tau") else policy.logits).softmax(1).detach()
    mixed = 0.7 / plain.shape[1] + 0.3 * plain if form.get("mix") else plain
    torch.testing.assert_close(policy.scores().softmax(1).detach(), mixed)


def test_sequences_start_as_independent_slots_and_then_learn_what_follows_what():
    apart, policy = SharedPolicy(EIGHT[:3], slots=3), SequencePolicy(EIGHT[:3], slots=3)
    assert policy.logits.shape == (1, 64)
    torch.testing.assert_close(policy.probabilities(), apart.probabilities())
    draws = Draws(torch.tensor([[1, 3, 0], [0, 0, 0], [2, 2, 1]]), torch.zeros(3, 3, 1))
    torch.testing.assert_close(policy.log_probability(draws), apart.log_probability(draws))
    assert policy.summary()["untouched"] == pytest.approx(0.2**3)
    with torch.no_grad():
        policy.logits[0, 1 * 16 + 3 * 4] = 50.0
    assert policy.sample(KEY, range(20)).op.eq(draws.op[0]).all()
    with pytest.raises(ValueError, match="100,000 sequences are more than 20,000"):
        SequencePolicy((*EIGHT[:8], EIGHT[0]._replace(name="again")), slots=5)
    with pytest.raises(ValueError, match="no relaxed form"):
        policy.relaxed(images(2), KEY, [0, 1])


def test_shared_probabilities_learn_the_gradient_of_the_expectation_from_both_slots():
    """The score function's mean over all that can be drawn, against the derivative in one row for both slots."""
    policy = SharedPolicy(EIGHT[:2], shared_probabilities=True).double()
    values = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ops = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    chance = policy.log_probability(Draws(ops, torch.zeros(9, 2, 1)))
    (chance.detach().exp() * values.flatten() * chance).sum().backward()
    row = policy.logits[0].detach().requires_grad_()
    (row.softmax(0) @ values @ row.softmax(0)).backward()
    torch.testing.assert_close(policy.logits.grad, row.grad.expand(2, 3) / 2)
    own = SharedPolicy(EIGHT[:2])
    assert torch.equal(policy.float().probabilities(), own.probabilities())
    assert torch.equal(policy.sample(KEY, range(99)).op, own.sample(KEY, range(99)).op)


def test_one_magnitude_may_be_shared_or_full_and_fixed_ones_are_left_out():
    transforms = (*EIGHT[:3], EIGHT[3]._replace(fixed=True))
    policy = SharedPolicy(transforms, magnitude=0.3, shared_magnitude=True)
    assert policy.strengths.shape == (1,)
    torch.testing.assert_close(policy.magnitudes().detach(), torch.tensor([0.3, 0.3, 0.3, 1.0]))
    assert policy.summary()["magnitude"] == pytest.approx(0.3)
    assert policy.summary()["saturated"] == 0
    draws = Draws(torch.tensor([[4], [4]]), torch.tensor([[[0.5]], [[-1.0]]]))
    torch.testing.assert_close(policy.amounts(draws).detach().flatten(), torch.tensor([0.15, -0.3]))
    assert (SharedPolicy(transforms, magnitude=1.0).magnitudes() == 1).all()
    own = SharedPolicy(transforms)
    own.magnitudes().sum().backward()
    assert own.strengths.grad.tolist() == [0.25, 0.25, 0.25, 0.0]


def test_a_free_number_is_not_scaled_by_the_magnitude():
    placed = EIGHT[4]._replace(reach=(0.5, 1.0, 2.0), free=2)
    policy = SharedPolicy([EIGHT[0], placed], slots=1, magnitude=0.1)
    draws = Draws(torch.tensor([[2], [1]]), torch.tensor([[[1.0, 0.4, -0.3]], [[0.5, 0.4, -0.3]]]))
    expected = torch.tensor([[[0.05, 0.4, -0.6]], [[1.5, 0.0, 0.0]]])
    torch.testing.assert_close(policy.amounts(draws).detach(), expected)


# ---- state and summary ----


def test_state_moves_through_state_dict_copies_and_pickles():
    policy, ids = uneven(dtype=torch.float32), np.arange(30)
    fresh = SharedPolicy()
    assert not torch.equal(fresh.logits, policy.logits)
    fresh.load_state_dict(policy.state_dict())
    assert set(policy.state_dict()) == {"logits", "strengths"}
    x = images(30, dtype=torch.float32)
    expected = policy.apply(x, policy.sample(KEY, ids))
    for other in (fresh, copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert torch.equal(other.apply(x, other.sample(KEY, ids)), expected)


def test_draws_follow_an_optimizer_at_once():
    policy = SharedPolicy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=20.0)
    draws = policy.sample(KEY, np.arange(100))
    assert draws.op.any()
    policy.log_probability(draws._replace(op=torch.zeros_like(draws.op))).sum().neg().backward()
    optimizer.step()
    assert not policy.sample(KEY, np.arange(100)).op.any()


def test_the_summary_measures_collapse_and_saturation():
    policy = SharedPolicy(magnitude=0.5, identity=1 / KINDS)
    found = policy.summary()
    assert found["identity"] == pytest.approx(1 / 9)
    assert found["untouched"] == pytest.approx(1 / 81)
    assert found["entropy"] == pytest.approx(1)
    assert (found["magnitude"], found["saturated"]) == (pytest.approx(0.5), 0)
    assert found["probability/sharpness"] == pytest.approx(1 / 9)
    with torch.no_grad():
        policy.logits[0, 0] = 50.0
        policy.logits[1, 0] = 50.0
        policy.strengths[NUMBER["rotate"] - 1] = 4.0  # .982
        policy.strengths[NUMBER["contrast"] - 1] = -4.0
        policy.strengths[NUMBER["sharpness"] - 1] = 3.8  # .978
    found = policy.summary()
    assert found["identity"] == found["untouched"] == pytest.approx(1)
    assert found["entropy"] == pytest.approx(0, abs=1e-9)
    assert found["saturated"] == 2 / 8
    assert found["magnitude/rotate"] == pytest.approx(0.982, abs=1e-3)
    assert all(type(v) is float and np.isfinite(v) for v in found.values())


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="slots must be at least 1, found 0"):
        SharedPolicy(slots=0)
    for wrong in (0.0, 1.1, -1.0, float("nan")):
        with pytest.raises(ValueError, match="initial magnitude must be above 0"):
            SharedPolicy(magnitude=wrong)
    for wrong in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="initial identity must be between"):
            SharedPolicy(identity=wrong)
    for transforms in ((), (EIGHT[0], EIGHT[0])):
        with pytest.raises(ValueError, match="different names"):
            SharedPolicy(transforms)
    for wrong in ({"tau": -1.0}, {"mix": 1.1}, {"mix": float("nan")}, {"tau": 0.5, "mix": 0.5}):
        with pytest.raises(ValueError, match="tau must be 0 or more and mix"):
            SharedPolicy(**wrong)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        SharedPolicy().relaxed(images(2), KEY, [0, 1], 0.0)
    policy = SharedPolicy()
    with torch.no_grad():
        policy.logits[1, 2] = float("nan")
    for draw in (policy.sample, policy.gumbel_draws):
        with pytest.raises(NonFiniteError, match="not finite"):
            draw(KEY, [0, 1])


@pytest.mark.gpu
def test_on_a_device_nothing_waits_and_images_are_those_of_the_host(no_host_sync):
    policy, x = uneven(dtype=torch.float32), images(64, dtype=torch.float32)
    draws = policy.sample(KEY, np.arange(64))
    expected, on_device = policy.apply(x, draws), x.cuda()
    policy.apply(on_device, draws)
    torch.cuda.synchronize()
    with no_host_sync(on_device.device):
        out = policy.apply(on_device, policy.sample(KEY, np.arange(64)))
    torch.testing.assert_close(out.cpu(), expected, atol=1e-4, rtol=0)
    towards = images(64, seed=1, dtype=torch.float32) - 0.4
    found = torch.autograd.grad(out, policy.strengths, towards.cuda())[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, policy.strengths, towards)[0], rtol=1e-3, atol=1e-2)

"""Weights and labels set from one derivative, against what they are defined to be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from fastaug.hypergrad import ENGINES
from fastaug.hypergrad.problem import Cotangent, Problem, Samples
from fastaug.losses import soft_cross_entropy
from fastaug.meta.reweighting import instant_labels, instant_weights, with_rows
from fastaug.targets import SoftTarget, dense, hard_target


def alone(tensor):
    return tensor


@settings(max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_weights_are_the_positive_help_with_mean_one(harm):
    harm = torch.tensor(harm, dtype=torch.float64)
    weights = instant_weights(harm, alone)
    assert (weights >= 0).all()
    assert (weights[harm >= 0] == 0).all()
    if (harm < -1e-6).any():
        assert weights.mean().item() == pytest.approx(1)
        torch.testing.assert_close(weights / weights.sum(), (-harm).clamp_min(0) / (-harm).clamp_min(0).sum())


def test_numbers_that_are_not_finite_count_as_harm():
    weights = instant_weights(torch.tensor([float("nan"), -1.0, float("inf"), -1.0]), alone)
    assert weights.tolist() == [0, 2, 0, 2]


def test_even_weights_among_those_that_help():
    weights = instant_weights(torch.tensor([-3.0, -0.1, 0.0, 2.0]), alone, even=True)
    assert weights.tolist() == [2, 2, 0, 0]


def test_without_a_finite_number_nothing_is_weighed():
    assert instant_weights(torch.full((3,), torch.nan), alone).tolist() == [1, 1, 1]


def labels_of(slope, target, total=alone):
    cotangent = Cotangent(None, torch.zeros(len(slope), 2), torch.zeros(len(slope)), torch.stack([slope, slope], 1))
    return instant_labels(cotangent, target, temperature=1.0, trust=1.0, total=total)


def test_a_sample_without_a_finite_slope_keeps_its_label():
    slope = torch.tensor([[1.0, -1.0, 0.0], [torch.nan, 0.0, 0.0], [0.0, 2.0, 0.0]])
    target = with_rows(hard_target(torch.tensor([0, 1, 2])), 3)
    found, harm = labels_of(slope, target)
    assert (found.rows[1] == target.rows[1]).all()
    assert (found.rows[[0, 2]] != target.rows[[0, 2]]).all()
    assert harm.isnan().tolist() == [False, True, False]
    alone_found, _ = labels_of(slope[[0, 2]], target._replace(rows=target.rows[[0, 2]], weight=target.weight[[0, 2]]))
    torch.testing.assert_close(found.rows[[0, 2]], alone_found.rows)


def test_labels_do_not_depend_on_a_sample_s_own_weight():
    """The slope of a loss is that of a sample of weight 1 times the weight."""
    slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    slope[3] = 0  # of the one without weight
    target, weight = with_rows(hard_target(torch.tensor([0, 1, 2, 0])), 3), torch.tensor([1.0, 0.5, 0.1, 0.0])
    found, harm = labels_of(slope * weight[:, None], target._replace(weight=weight))
    equal, equal_harm = labels_of(slope, target)
    torch.testing.assert_close(found.rows, equal.rows)
    torch.testing.assert_close(harm, equal_harm)


def test_two_processes_take_the_labels_of_one():
    """Each half of a batch by itself, with the sums of both."""
    generator = torch.Generator().manual_seed(0)
    slope, target = torch.randn(8, 3, generator=generator), with_rows(hard_target(torch.arange(8) % 3), 3)
    slope[:4] *= 5
    whole, whole_harm = labels_of(slope, target)
    halves = [
        (slope[part], target._replace(rows=target.rows[part], weight=target.weight[part]))
        for part in (slice(0, 4), slice(4, 8))
    ]
    sums = []
    for half in halves:
        labels_of(*half, total=lambda local: sums.append(local) or local)
    found = [labels_of(*half, total=lambda _: sums[0] + sums[1]) for half in halves]
    torch.testing.assert_close(torch.cat([labels.rows for labels, _ in found]), whole.rows)
    torch.testing.assert_close(torch.cat([harm for _, harm in found]), whole_harm)


def test_harm_is_how_much_worse_than_an_even_label_the_new_one_is():
    """By finite changes of the loss that the slope belongs to, linear in the label."""
    slope = torch.tensor([[3.0, -1.0, 1.0], [0.0, 0.5, -2.0]])
    target = with_rows(hard_target(torch.tensor([0, 2])), 3)
    found, harm = labels_of(slope, target)
    scale = (slope - slope.mean(1, keepdim=True)).square().mean().sqrt()
    for i in range(2):
        change = slope[i] @ found.rows[i, 0] - slope[i] @ torch.full((3,), 1 / 3)
        assert harm[i].item() == pytest.approx((change / scale).item(), rel=1e-5)


def test_written_out_targets_are_the_same_targets():
    target = SoftTarget(torch.tensor([[0, 2], [1, 1]]), torch.tensor([[0.5, 0.2], [0.6, 0.0]]), torch.ones(2))
    torch.testing.assert_close(dense(with_rows(target, 4), 4), dense(target, 4))


def test_labels_solve_their_problem():
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(3, 4, generator=generator)
    target = with_rows(hard_target(torch.tensor([0, 1, 3])), 4)
    cotangent = Cotangent(None, torch.zeros(3, 2), torch.zeros(3), torch.stack([slope, slope], 1))
    found, harm = instant_labels(cotangent, target, temperature=0.7, trust=1.3, total=alone)
    gain = slope.mean(1, keepdim=True) - slope
    gain = gain / gain.square().mean().sqrt()
    for i in range(3):
        value = (gain[i] + 1.3 * target.rows[i, 0]).double().numpy()

        def loss(z, value=value):
            y = torch.softmax(torch.from_numpy(z), 0).numpy()
            return -(value @ y) + 0.7 * (y @ torch.log(torch.from_numpy(y)).numpy())

        best = torch.softmax(torch.from_numpy(minimize(loss, torch.zeros(4).double().numpy(), tol=1e-12).x), 0)
        torch.testing.assert_close(found.rows[i, 0].double(), best, rtol=0, atol=1e-4)
    assert harm.shape == (3,)


def test_wrong_labels_get_less_weight_and_the_right_class_more_probability():
    """A linear network, two well separated classes, a fifth of the labels wrong: v knows the truth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (100,), generator=generator)
    images = torch.randn(100, 2, generator=generator) + 3 * (2 * truth[:, None] - 1)
    labels = torch.where(torch.arange(100) < 20, 1 - truth, truth)
    network = torch.nn.Linear(2, 2)
    weights = {name: p.detach() for name, p in network.named_parameters()}
    losses = lambda logits, target: soft_cross_entropy(logits, target, reduction="none")  # noqa: E731
    loss = torch.nn.functional.cross_entropy(network(images), truth)
    v = dict(zip(weights, torch.autograd.grad(loss, list(network.parameters())), strict=True))
    target = with_rows(hard_target(labels), 2)
    problem = Problem(network, weights, Samples(images, target), losses, 100)
    cotangent = ENGINES["forward"](problem, {name: -value for name, value in v.items()}, images=False)
    given_weights = instant_weights(cotangent.weight, alone)
    assert given_weights[:20].mean() < 0.1 * given_weights[20:].mean()
    found, harm = instant_labels(cotangent, target, temperature=1.0, trust=1.0, total=alone)
    of_truth = found.rows[torch.arange(100), 0, truth]
    assert (of_truth[:20] > 0.27).float().mean() > 0.9  # 0.27 is what trust alone would leave them
    assert harm[20:].mean() < harm[:20].mean()

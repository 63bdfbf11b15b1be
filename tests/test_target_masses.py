"""Masses from visibility: the softening curve and Soft Augmentation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug import targets as T
from fastaug.targets import soft_cross_entropy, softness

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
examples = settings(max_examples=60)  # a busy machine is not a failure
EXPONENTS = [0.3, 1.0, 2.0, 4.5]


@examples
@given(st.floats(0, 1), st.floats(0.1, 8), st.integers(2, 1000), st.floats(0, 1), st.floats(0.05, 1.5))
def test_soft_augmentation_confidence_is_the_published_one(v, k, num_classes, share, threshold):
    chance = 1 / num_classes
    p_max = chance + share * (1 - chance)
    published = p_max if v >= threshold else p_max - (p_max - chance) * ((threshold - v) / threshold) ** k
    visible = torch.tensor([v], dtype=torch.float64)
    mass = T.soft_augmentation_mass(visible, k, num_classes, p_max, threshold)
    weight = T.mass_confidence(mass, num_classes)
    target = T.SoftTarget(torch.tensor([[1, 1]]), torch.stack([mass, 0 * mass], 1), weight)
    table = T.dense(target, num_classes)[0]
    others = torch.cat([table[:1], table[2:]])
    torch.testing.assert_close(table[1].item(), published, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(others, torch.full_like(others, (1 - published) / (num_classes - 1)))
    torch.testing.assert_close(target.weight, table[1:2])  # the release weights a sample by its confidence


def test_soft_augmentation_of_the_paper_is_mass_s_of_v():
    v = torch.linspace(0, 1, 11, dtype=torch.float64)
    p = 1 - (1 - 1 / 100) * (1 - v) ** 2
    torch.testing.assert_close(T.mass_confidence(softness(v, 2), 100), p)
    torch.testing.assert_close(T.soft_augmentation_mass(v, 2, 100), softness(v, 2))


# ---- derivatives ----


@examples
@given(st.floats(0, 1), st.floats(0.2, 6))
def test_softness_is_the_curve(v, k):
    got = softness(torch.tensor(v, dtype=torch.float64), k)
    assert math.isclose(got, 1 - (1 - v) ** k, abs_tol=1e-12)


@pytest.mark.parametrize("k", EXPONENTS)
def test_softness_has_finite_and_correct_derivatives(k):
    v = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
    exponent = torch.full((3,), k, dtype=torch.float64, requires_grad=True)
    by_v, by_k = torch.autograd.grad(softness(v, exponent).sum(), (v, exponent))
    at_one = 1.0 if k == 1 else 0.0
    expected = torch.tensor([k, k * 0.6 ** (k - 1), at_one], dtype=torch.float64)
    torch.testing.assert_close(by_v, expected)
    torch.testing.assert_close(by_k, torch.tensor([0, -(0.6**k) * math.log(0.6), 0], dtype=torch.float64))
    # the same in forward mode
    tangents = torch.ones_like(v.detach())
    _, jvp_v = torch.func.jvp(lambda v: softness(v, exponent.detach()), (v.detach(),), (tangents,))
    _, jvp_k = torch.func.jvp(lambda k: softness(v.detach(), k), (exponent.detach(),), (tangents,))
    torch.testing.assert_close((jvp_v, jvp_k), (by_v, by_k))


def test_visibility_above_one_or_the_threshold_is_full():
    v = torch.tensor([1.0 + 1e-6, 2.0], requires_grad=True)
    s = softness(v, 1.0)
    assert s.tolist() == [1, 1]
    assert torch.autograd.grad(s.sum(), v)[0].tolist() == [0, 0]


def test_the_softening_exponent_can_be_learned_through_the_loss():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    visible = torch.tensor([[0, 0], [40, 24], [10, 20], [64, 0]], dtype=torch.float64)
    classes = torch.tensor([[0, 1], [2, 2], [3, 4], [1, 0]])

    def loss(k):
        seen = visible.sum(1, keepdim=True)
        mass = softness(seen / 64, k) * visible / seen.clamp_min(1)  # Soft CutMix
        return soft_cross_entropy(logits, T.mixed_target(classes, mass, torch.ones_like(mass)))

    for k in EXPONENTS:
        assert torch.autograd.gradcheck(
            loss, torch.tensor(k, dtype=torch.float64, requires_grad=True), check_forward_ad=True
        )

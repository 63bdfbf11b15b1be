"""Choices of the meta step in real runs: meta-optimizer, regulariser, validation loss."""

import pytest
import torch
from timm.utils import ModelEmaV3

from fastaug.meta import one_step
from fastaug.meta.step import MetaStep

from .conftest import last, lines

LEARN = [
    "meta.learn=[policy,softness]",
    "meta.probabilities=score",
    "meta.every=1",
    "meta.fraction=1",
    "augment.cutmix=0",
    "train.epochs=1",
]


def learned(folder):
    return last(folder)[1]["meta"]["learned"]


@pytest.fixture
def moves(monkeypatch):
    """(hypergradients by name, parameters before and after) of every meta step."""
    seen, move = [], MetaStep.move

    def watched(self, found, ids, step):
        before = {name: p.detach().clone() for name, p in self.learned.shared().items()}
        move(self, found, ids, step)
        after = {name: p.detach().clone() for name, p in self.learned.shared().items()}
        seen.append((found, before, after))

    monkeypatch.setattr(MetaStep, "move", watched)
    return seen


def test_sgd_steps_by_rate_times_hypergradient_and_the_others_do_not(train, moves):
    for name in ("sgd", "adam", "rmsprop"):
        train(name, *LEARN, f"meta.optimizer={name}", "meta.policy_lr=0.5", "meta.softness_lr=0.25")
        found, before, after = moves[0]
        for parameter, lr in (("policy.policy.logits", 0.5), ("softness.k.raw", 0.25)):
            plain = torch.allclose(after[parameter], before[parameter] - lr * found[parameter], rtol=1e-5, atol=1e-8)
            assert plain == (name == "sgd"), (name, parameter)
            assert (after[parameter] != before[parameter]).any()
        moves.clear()


@pytest.mark.slow
def test_rates_follow_the_schedule_and_not_what_is_learned_of_the_networks_rate(train, moves):
    keys = ["meta.learn=[policy,optim]", *LEARN[1:], "meta.optimizer=sgd", "meta.policy_lr=0.5", "meta.optim_lr=1e3"]
    rate = [line["lr"] / 0.02 for line in lines(train("still", *keys, "meta.optim_lr=0"), "train")]
    moves.clear()
    learned_rate = [line["lr"] / 0.02 for line in lines(train("run", *keys, "meta.anneal=true"), "train")]
    assert abs(learned_rate[-1] / rate[-1] - 1) > 0.1
    found, before, after = moves[-1]
    name = "policy.policy.logits"
    torch.testing.assert_close(after[name], before[name] - 0.5 * rate[-1] * found[name], rtol=1e-5, atol=1e-8)


def test_momentum_decay_and_rates_that_follow_the_networks(train, moves):
    keys = ["meta.optimizer=sgd", "meta.policy_lr=0.5", "meta.momentum=0.9", "meta.weight_decay=0.1"]
    folder = train("run", *LEARN, *keys, "meta.anneal=true", "optim.warmup_epochs=0.4")
    rates = [line["lr"] / 0.02 for line in lines(folder, "train")]
    assert len(rates) == len(moves) >= 3
    assert len({round(rate, 3) for rate in rates}) == len(rates)
    name, kept = "policy.policy.logits", 0.0
    for rate, (found, before, after) in zip(rates, moves, strict=True):
        kept = 0.9 * kept + found[name] + 0.1 * before[name]
        torch.testing.assert_close(after[name], before[name] - 0.5 * rate * kept, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        pytest.param(
            "start", lambda p, begin: {name: 2 * (p[name] - begin[name]) for name in p}, marks=pytest.mark.slow
        ),
        ("magnitude", lambda p, _: {"policy.policy.strengths": slope_of_magnitudes(p["policy.policy.strengths"])}),
    ],
)
def test_a_regulariser_adds_its_own_gradient_and_no_other(train, moves, kind, expected):
    keys = ["meta.optimizer=sgd", "meta.policy_lr=1", "meta.softness_lr=1", f"meta.regulariser={kind}"]
    train("run", *LEARN, *keys, "meta.regulariser_weight=0.5")
    begin = moves[0][1]
    for found, before, after in moves:
        penalty = expected(before, begin)
        for name in before:
            step = found[name] + 0.5 * penalty.get(name, torch.zeros_like(before[name]))
            torch.testing.assert_close(after[name], before[name] - step, rtol=1e-4, atol=1e-6)


def slope_of_magnitudes(strengths):
    leaf = strengths.clone().requires_grad_()
    (slope,) = torch.autograd.grad((1 - leaf.sigmoid()).square().mean(), leaf)
    return slope


@pytest.mark.slow
def test_a_strong_regulariser_spreads_the_probabilities_again(train):
    """Its start is uneven by the identity's share."""
    keys = ["meta.policy_lr=0.5", "meta.regulariser=entropy", "train.epochs=2"]
    weak, strong = (
        train(name, *LEARN[:-1], *keys, f"meta.regulariser_weight={weight}")
        for name, weight in (("a", 1e-9), ("b", 1e4))
    )
    spread = [lines(folder, "learned")[-1]["policy_entropy"] for folder in (weak, strong)]
    assert spread[1] > 0.99
    assert spread[1] > spread[0]


@pytest.mark.slow
def test_another_validation_loss_gives_another_hypergradient(train, moves):
    norms = {}
    for loss in ("ce", "gce"):
        train(loss, *LEARN, f"meta.validation_loss={loss}")
        norms[loss] = moves[0][0]["softness.k.raw"].item()
        moves.clear()
    assert norms["ce"] != norms["gce"]


@pytest.mark.slow
def test_an_average_is_led_back_by_the_factor_it_was_made_with(train, monkeypatch):
    """With a warm-up of the average the factor changes from update to update."""
    led_back, made = [], []
    through, update = one_step.through_average, ModelEmaV3.update
    monkeypatch.setattr(one_step, "through_average", lambda v, decay: (led_back.append(decay), through(v, decay))[1])

    def updated(self, model, step=None):
        before = next(self.module.parameters()).detach().clone()
        update(self, model, step)
        after, new = next(self.module.parameters()).detach(), next(model.parameters()).detach()
        made.append(1 - ((after - before).norm() / (new - before).norm()).item())

    monkeypatch.setattr(ModelEmaV3, "update", updated)
    keys = ["meta.weights=ema", "model.ema=true", "model.ema_warmup=true", "train.epochs=2"]
    train("run", *LEARN[:-1], *keys)
    assert len(led_back) == len(made) == 6
    assert led_back == pytest.approx(made, abs=1e-3)
    assert len(set(led_back)) > 3

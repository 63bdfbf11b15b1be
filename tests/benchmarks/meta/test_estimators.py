"""Estimators of the hypergradient in probabilities: unbiased where they say so, on a case that can be enumerated."""

import itertools
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.meta import estimators
from benchmarks.meta.__main__ import parse
from benchmarks.meta.estimators import Passes

SAMPLES, KINDS = 4, 2
PROBABILITY = torch.tensor([0.3, 0.7], dtype=torch.float64)
LABEL = torch.tensor([0, 0, 1, 0], dtype=torch.float64)


def drawn(ops: Tensor, tables: dict[str, Tensor]) -> Passes:
    """Passes of batches with operations [batches, samples]; `tables` [samples, kinds]: what each does to a sample."""
    score = torch.nn.functional.one_hot(ops, tables["share"].shape[1]) - PROBABILITY
    seen = {name: table[torch.arange(ops.shape[1]), ops] for name, table in tables.items()}
    return Passes(score[:, :, None], **seen, label=LABEL.expand(len(ops), -1))


def tables(generator: torch.Generator) -> dict[str, Tensor]:
    names = [field.name for field in fields(Passes) if field.name not in ("score", "label")]
    return {name: torch.randn(SAMPLES, KINDS, generator=generator, dtype=torch.float64).abs() for name in names}


def gradient(share: Tensor) -> Tensor:
    """Of the expected mean share in the logits."""
    logits = PROBABILITY.log().requires_grad_()
    return torch.autograd.grad((share @ logits.softmax(0)).mean(), logits)[0]


@pytest.mark.parametrize(
    "estimator",
    [estimators.others, estimators.by_class, estimators.by_operation, estimators.ESTIMATORS["share, no baseline"]],
)
def test_the_mean_over_all_draws_is_the_gradient(estimator: Any) -> None:
    """After five batches that stay as they are, for who looks back."""
    found, generator = torch.zeros(KINDS, dtype=torch.float64), torch.Generator().manual_seed(3)
    table = tables(generator)
    before = torch.randint(KINDS, (5, SAMPLES), generator=generator)
    for draw in itertools.product(range(KINDS), repeat=SAMPLES):
        ops = torch.tensor(draw)
        found += PROBABILITY[ops].prod() * estimator(drawn(torch.cat([before, ops[None]]), table))[-1]
    torch.testing.assert_close(found, gradient(table["share"]), rtol=1e-12, atol=1e-14)


def test_several_operations_an_image_are_unbiased_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "COPIES", 2)
    table = tables(torch.Generator().manual_seed(4))
    table = {name: values[:2].repeat(2, 1) for name, values in table.items()}  # two images, copy after copy
    found = torch.zeros(KINDS, dtype=torch.float64)
    for draw in itertools.product(range(KINDS), repeat=SAMPLES):
        ops = torch.tensor(draw)
        found += PROBABILITY[ops].prod() * estimators.by_image(drawn(ops[None], table))[0]
    torch.testing.assert_close(found, gradient(table["share"]), rtol=1e-12, atol=1e-14)


def test_a_control_moves_noise_away_and_not_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "SEEN", 8)
    generator = torch.Generator().manual_seed(5)
    table = tables(generator)
    table["share"] = 3 * table["head"] + 0.01 * table["share"]
    seen = drawn(
        torch.multinomial(PROBABILITY, 40 * SAMPLES, replacement=True, generator=generator).view(40, -1), table
    )
    today, controlled = estimators.others(seen), estimators.controlled("head")(seen)
    torch.testing.assert_close(controlled.mean(0), today.mean(0))
    assert estimators.spread(controlled) < 0.3 * estimators.spread(today)


def test_fewer_batches_than_a_control_looks_back_on_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (estimators.SEEN + 1, estimators.SEEN):
        monkeypatch.setattr(sys, "argv", ["meta", "--only", "estimators", "--draws", str(count)])
        if count > estimators.SEEN:
            assert parse().draws == count
    with pytest.raises(SystemExit):
        parse()
    assert "--draws: 160 are too few for controls; set it to 161 or more" in capsys.readouterr().err


def test_even_numbers_draw_every_operation_as_often_as_its_probability_says() -> None:
    uniform = np.random.default_rng(0).random((40, 2))
    even = estimators.evened(uniform)
    assert (even.argsort(0) == uniform.argsort(0)).all()
    assert (np.histogram(even[:, 0], bins=10, range=(0, 1))[0] == 4).all()
    firsts = [estimators.evened(np.random.default_rng(seed).random((8, 1)))[0, 0] for seed in range(2000)]
    assert np.abs(np.histogram(firsts, bins=4, range=(0, 1))[0] / 2000 - 0.25).max() < 0.04


def test_what_operations_explain_and_how_many_samples_a_cosine_takes() -> None:
    generator, kinds = torch.Generator().manual_seed(6), 12
    effect = 0.2 * torch.randn(kinds, generator=generator, dtype=torch.float64)
    ops = torch.randint(kinds, (4000, 64), generator=generator)
    score = torch.nn.functional.one_hot(ops, kinds) - 1 / torch.tensor(kinds, dtype=torch.float64)
    noise = torch.randn(ops.shape, generator=generator, dtype=torch.float64)
    share, between = effect[ops] + noise, float(effect.var(correction=0))
    score = score[:, :, None]
    assert estimators.explained(share, score) == pytest.approx(between / (1 + between), rel=0.05)
    assert estimators.explained(noise, score) == pytest.approx(0, abs=1e-4)
    today = estimators.scored(estimators.less_others(share), Passes(score, share, share, share, share, share))
    count = round(estimators.batches_for(today, 0.8))
    means = today[: 4000 // count * count].unflatten(0, (-1, count)).mean(1)
    assert cosine_similarity(means, (effect - effect.mean())[None]).mean() == pytest.approx(0.8, abs=0.02)


def test_probabilities_that_all_slots_share_have_the_mean_of_what_each_has() -> None:
    generator = torch.Generator().manual_seed(7)
    score = torch.randn(3, SAMPLES, 2, KINDS, generator=generator, dtype=torch.float64)
    seen = Passes(score, *[torch.randn(3, SAMPLES, generator=generator, dtype=torch.float64)] * 5)
    one, two = estimators.others(seen).split(KINDS, 1)
    torch.testing.assert_close(estimators.over_slots(seen), torch.cat([(one + two) / 2] * 2, 1))

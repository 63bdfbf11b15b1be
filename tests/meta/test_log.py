"""Lines of the meta step, and what was left out of it."""

import pytest
import torch

from fastaug.meta.log import MetaLog, alarms
from fastaug.meta.parameters import LearnedParts

NAN = float("nan")


def test_norm_of_all_parts_and_cosine_of_the_shared_ones():
    log = MetaLog()
    log.add(0, {"a": torch.tensor([3.0]), "b": torch.tensor([0.0, 0.0])}, {"t": torch.tensor([4.0, 0.0])})
    log.add(1, {"a": torch.tensor([0.0]), "b": torch.tensor([2.0, 0.0])}, {"t": torch.tensor([0.0, 0.0])})
    one, two = log.read()
    assert one == {"event": "meta", "step": 1, "hypergradient": pytest.approx(5)}
    assert two == {"event": "meta", "step": 2, "hypergradient": pytest.approx(2), "cosine_with_last": 0}
    assert log.read() == []


def test_one_sample_that_is_not_finite_is_no_meta_step_left_out():
    log = MetaLog()
    log.add(0, {}, {"t": torch.tensor([NAN, 2.0])})
    log.add(1, {}, {"t": torch.tensor([NAN, NAN])})
    log.add(2, {"a": torch.tensor([1.0, NAN])}, {"t": torch.tensor([1.0])})
    assert [line.get("skipped", False) for line in log.read()] == [False, True, True]
    assert log.skipped == 2


def test_share_of_samples_without_weight():
    log = MetaLog()
    log.add(0, {}, {"t": torch.tensor([1.0, 2.0])}, torch.tensor([0.0, 1.0]))
    log.add(1, {}, {"t": torch.tensor([1.0, 2.0])}, torch.tensor([0.0, 0.0]))
    assert [line["without_weight"] for line in log.read()] == [0.5, 1]
    assert log.without_weight == 0.75
    assert alarms(LearnedParts({}), {}, log, 0) == []
    log.add(2, {}, {"t": torch.tensor([1.0, 2.0])}, torch.tensor([0.0, 0.0]))
    log.read()
    assert "100% of the samples got the instant weight 0" in alarms(LearnedParts({}), {}, log, 0)[0]


def test_what_was_left_out_is_said():
    log = MetaLog()
    log.skipped = 3
    assert [text[:2] for text in alarms(LearnedParts({}), {}, log, 2)] == ["3 ", "2 "]

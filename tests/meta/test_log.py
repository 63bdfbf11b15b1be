"""Lines of the meta step, and what was left out of it."""

import pytest
import torch

from fastaug.meta.log import MetaLog, alarms, held_back_alarm
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


def test_what_was_left_out_is_said_once():
    log = MetaLog()
    log.skip(0)
    log.add(1, {"a": torch.tensor([NAN])}, {})
    log.read()
    assert [text[:2] for text in alarms(LearnedParts({}), {}, log, 1)] == ["2 ", "1 "]
    log.add(2, {"a": torch.tensor([1.0])}, {})
    log.read()
    assert alarms(LearnedParts({}), {}, log, 0) == []
    log.skip(3)
    log.read()
    assert alarms(LearnedParts({}), {}, log, 0)[0].startswith("1 meta steps were left out (3 so far)")


def test_a_hypergradient_that_holds_the_meta_optimizer_back_is_an_alarm_until_its_memory_fades():
    log, parameter = MetaLog(), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, 0.99))
    steps = []
    for step, size in enumerate([0.02, 64.0, *[0.25] * 1000]):
        log.add(step, {"a": torch.tensor([size * 1e-3])}, {}, rate=1e-3)  # as it shrinks with the schedule
        parameter.grad, before = torch.tensor([size]), parameter.item()
        optimizer.step()
        steps.append(before - parameter.item())
        log.read()
        if step == 1:
            assert held_back_alarm(log) == []
        if step == 100:
            assert "meta.start_epochs" in held_back_alarm(log)[0]
            assert log.held_back() == pytest.approx(1 / steps[-1], rel=0.25)
    assert held_back_alarm(log) == []
    assert steps[-1] == pytest.approx(1, rel=0.2)


def test_the_alarm_continues_from_a_checkpoint():
    log, other = MetaLog(), MetaLog()
    for step, size in enumerate([64.0, *[0.25] * 60]):
        log.add(step, {"a": torch.tensor([size])}, {})
    log.read()
    other.load_state_dict(log.state_dict())
    assert other.held_back() == log.held_back() > 10
    other.load_state_dict({"last": None, "skipped": 1})  # of 0.1.0
    assert held_back_alarm(other) == []

"""Lines and alarms of the meta step."""

import pytest
import torch

from fastaug.meta.log import MetaLog, alarms

NAN = float("nan")


def test_norm_of_all_parts_and_cosine_of_the_shared_ones():
    log = MetaLog()
    log.add(0, [torch.tensor([3.0]), torch.tensor([0.0, 0.0])], torch.tensor([4.0, 0.0]))
    log.add(1, [torch.tensor([0.0]), torch.tensor([2.0, 0.0])], torch.tensor([0.0, 0.0]))
    one, two = log.read()
    assert one == {"event": "meta", "step": 1, "hypergradient": pytest.approx(5)}
    assert two == {"event": "meta", "step": 2, "hypergradient": pytest.approx(2), "cosine_with_last": 0}
    assert log.read() == []


def test_one_sample_that_is_not_finite_is_no_meta_step_left_out():
    log = MetaLog()
    log.add(0, [], torch.tensor([NAN, 2.0]))
    log.add(1, [], torch.tensor([NAN, NAN]))
    log.add(2, [torch.tensor([1.0, NAN])], torch.tensor([1.0]))
    assert [line.get("skipped", False) for line in log.read()] == [False, True, True]
    assert log.skipped == 2


def test_share_of_samples_without_weight():
    log = MetaLog()
    log.add(0, [], torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    log.add(1, [], torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
    assert [line["without_weight"] for line in log.read()] == [0.5, 1]
    assert log.without_weight == 0.75
    assert alarms({}, log, 0) == []
    log.add(2, [], torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]))
    log.read()
    assert "100% of the samples got the instant weight 0" in alarms({}, log, 0)[0]


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        ({"policy_identity": 0.96}, "collapsed to identity"),
        ({"policy_magnitude/rotate": 0.99, "policy_magnitude/shear": 0.5}, "policy_magnitude/rotate is 0.990"),
        ({"policy_magnitude/rotate": 0.01}, "policy_magnitude/rotate is 0.010"),
        ({"optim_lr_saturation": 0.99}, "optim_lr_saturation is 0.990"),
        ({"weight_mean": 0.1}, "mean sample weight is 0.100"),
    ],
)
def test_alarms(summary, words):
    (alarm,) = alarms(summary, MetaLog(), 0)
    assert words in alarm


def test_what_was_left_out_is_said():
    log = MetaLog()
    log.skipped = 3
    assert [text[:2] for text in alarms({"weight_mean": 1.0, "policy_magnitude/x": 0.5}, log, 2)] == ["3 ", "2 "]

"""The table of training images: its order and how well figures find wrong labels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastaug.evaluation.per_sample import SampleLosses, found_errors, suspicious_first

NAN = float("nan")


def parts(wrong: np.ndarray) -> SimpleNamespace:
    """All images train; the labels of some were replaced."""
    given = np.zeros(len(wrong), dtype=np.int64)
    splits = SimpleNamespace(train=np.arange(len(wrong)))
    return SimpleNamespace(
        index=SimpleNamespace(labels=given + wrong), folder_labels=given, splits=splits, planted=None
    )


def test_images_without_a_figure_stand_behind_all_others():
    loss = [0.1, NAN, 3.0, 0.5, NAN, 3.0]
    weight = [1.0, 0.5, 1.0, 1.0, 0.0, 0.2]
    assert suspicious_first([0, 1, 2, 3, 4, 5], {"loss": loss, "weight": weight}) == [5, 2, 3, 0, 4, 1]
    assert suspicious_first([0, 1, 2, 3, 4, 5], {"weight": weight, "other": loss}) == [4, 5, 1, 0, 2, 3]


def test_unknown_figures_are_the_least_suspicious():
    figures = {"loss": torch.tensor([NAN, 0.1, 0.2, 0.3]), "weight": torch.tensor([NAN, 1.0, 0.5, 0.2])}
    found = found_errors(parts(np.array([False, False, True, True])), figures)
    assert found == {"loss_auroc": 1.0, "weight_auroc": 1.0}


def test_a_figure_of_which_nothing_is_known_finds_nothing_not_half():
    assert found_errors(parts(np.array([False, True])), {"loss": torch.tensor([NAN, NAN])}) == {}


def test_a_log_line_looks_at_some_of_many_images_and_the_end_at_all():
    draw = np.random.default_rng(0)
    wrong = draw.random(30_001) < 0.4
    weight = torch.from_numpy(1 - wrong + draw.normal(0, 1, len(wrong)))
    every, some = (found_errors(parts(wrong), {"weight": weight}, most) for most in (None, 10_000))
    assert some != every
    assert some["weight_auroc"] == pytest.approx(every["weight_auroc"], abs=0.01)
    few, figures = parts(wrong[:10_000]), {"weight": weight[:10_000]}
    assert found_errors(few, figures, 10_000) == found_errors(few, figures)


def test_sums_of_losses_continue_where_images_to_evaluate_have_come_or_gone():
    sums = torch.arange(8.0, dtype=torch.float64).view(2, 4)
    for size in (3, 4, 6):
        losses = SampleLosses(size, None, torch.device("cpu"))
        losses.restore(sums, main=True)
        assert torch.equal(losses._sums[:, : min(size, 4)], sums[:, :size])
        assert losses._sums.shape == (2, size)
        assert not losses._sums[:, 4:].any()
        losses.restore(sums, main=False)
        assert not losses._sums.any()

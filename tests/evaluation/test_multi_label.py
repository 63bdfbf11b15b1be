"""Figures of images with any number of classes, against scikit-learn."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn import metrics

from fastaug.errors import NoImageError
from fastaug.evaluation.multi_label import MultiLabelEvaluation, average_precision

N, C = 200, 5


def figures(logits: torch.Tensor, truth: torch.Tensor, threshold: float = 0.5) -> dict[str, object]:
    meter = MultiLabelEvaluation(truth, threshold)
    for ids in torch.randperm(len(truth), generator=torch.Generator().manual_seed(0)).split(64):
        meter.add(logits[ids], ids)
    return meter.result(Accelerator(cpu=True))


@pytest.fixture
def logits() -> torch.Tensor:
    """With many equal ones."""
    return (torch.randn(N, C, generator=torch.Generator().manual_seed(1)) * 4).round() / 4


@pytest.fixture
def truth() -> torch.Tensor:
    return (torch.rand(N, C, generator=torch.Generator().manual_seed(2)) < 0.3).to(torch.uint8)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_figures_are_those_of_scikit_learn(logits: torch.Tensor, truth: torch.Tensor, threshold: float) -> None:
    found = figures(logits, truth, threshold)
    scores, y = logits.sigmoid().numpy(), truth.numpy()
    predicted = (logits.double().sigmoid() >= threshold).numpy()
    assert found["images"] == N
    assert found["mean_ap"] == pytest.approx(metrics.average_precision_score(y, scores, average="macro"))
    assert found["ap_by_class"] == pytest.approx(metrics.average_precision_score(y, scores, average=None))
    for kind in ("micro", "macro"):
        assert found[f"f1_{kind}"] == pytest.approx(metrics.f1_score(y, predicted, average=kind))
    assert found["exact"] == pytest.approx(metrics.accuracy_score(y, predicted))
    assert found["bce"] == pytest.approx(np.mean([metrics.log_loss(y[:, c], scores[:, c]) for c in range(C)]), rel=1e-5)


def test_a_class_without_images_has_no_precision(logits: torch.Tensor, truth: torch.Tensor) -> None:
    truth[:, 2], logits[:, 2] = 0, -9
    found = figures(logits, truth)
    precision = [value for value in found["ap_by_class"] if value is not None]  # type: ignore[attr-defined]
    assert len(precision) == C - 1
    assert found["mean_ap"] == pytest.approx(np.mean(precision))
    assert found["f1_by_class"][2] is None  # type: ignore[index]


def test_no_images_and_broken_logits(truth: torch.Tensor) -> None:
    with pytest.raises(NoImageError):
        MultiLabelEvaluation(truth, 0.5).result(Accelerator(cpu=True))
    assert figures(torch.full((N, C), torch.nan), truth)["mean_ap"] == 0
    assert average_precision(np.array([0.1, 0.2]), np.array([0.0, 0.0])) is None

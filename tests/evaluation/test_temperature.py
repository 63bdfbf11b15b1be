import math

import pytest
import torch
from accelerate import Accelerator

from fastaug.errors import DataError
from fastaug.evaluation.metrics import Evaluation
from fastaug.evaluation.temperature import Calibration, KeptLogits, fit

CPU = torch.device("cpu")
NONE = torch.empty(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def outputs(count: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of five classes and labels drawn with the probabilities softmax(logits / scale)."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=draw)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]


def test_of_one_margin_it_is_the_margin_over_the_log_odds_of_being_right() -> None:
    """Two classes, margin 3 for class 0 everywhere, right 7 times of 10: softmax(3 / T) must be .7."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert fit(logits, labels) == pytest.approx(3 / math.log(7 / 3), rel=1e-14)


def test_no_temperature_near_it_is_better() -> None:
    logits, labels = outputs(500, 3.0)
    best = fit(logits, labels)

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))

    assert 2.5 < best < 3.5  # labels were drawn at 3
    assert nll(best) < min(nll(best * 1.001), nll(best / 1.001), nll(1.0))


def test_it_scales_with_the_logits_and_does_not_see_what_softmax_does_not() -> None:
    logits, labels = outputs(200, 1.0)
    moved = 8 * logits.double() + torch.arange(200)[:, None]
    assert fit(moved, labels) == pytest.approx(8 * fit(logits, labels), rel=1e-6)  # float32 logits


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1], "right about all 2 images"),
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0], "no better than guessing"),
        ([[math.nan, 0.0], [0.0, 1.0]], [0, 0], "not finite"),
    ],
)
def test_where_no_temperature_is_best_it_says_why(logits: list[list[float]], labels: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        fit(torch.tensor(logits), torch.tensor(labels))


def test_figures_are_those_of_evaluation_and_of_scaled_logits(accelerator: Accelerator) -> None:
    logits, labels = outputs(300, 3.0)
    calibration = Calibration((1.0, 3.0), 15, NONE, CPU)
    for start in (0, 100):
        rows = slice(start, start + 100 if start == 0 else 300)
        calibration.add(torch.arange(300)[rows], logits[rows], labels[rows])
    for figures, scaled in zip(calibration.figures(accelerator), (logits, logits.double() / 3), strict=True):
        plain = Evaluation(5, 15, CPU)
        plain.add(scaled, labels)
        expected = plain.result(accelerator)
        assert figures["nll"] == pytest.approx(expected["nll"], rel=1e-12)
        assert figures["ece"] == pytest.approx(expected["ece"], abs=1e-6)  # torchmetrics keeps confidences as float32


def test_the_reliability_diagram_by_hand(accelerator: Accelerator) -> None:
    """Confidences .8, .8, 1 and, left out, .6."""
    logits = torch.tensor([[math.log(4.0), 0.0], [0.0, math.log(4.0)], [100.0, 0.0], [math.log(1.5), 0.0]])
    calibration = Calibration((1.0,), 4, torch.tensor([7]), CPU)
    calibration.add(torch.tensor([3, 5, 6, 7]), logits.double(), torch.tensor([0, 0, 0, 0]))
    (found,) = calibration.figures(accelerator)
    empty, *_, last = found["reliability"]
    assert empty == {"from": 0.0, "to": 0.25, "images": 0, "accuracy": None, "confidence": None}
    assert (last["from"], last["to"], last["images"]) == (0.75, 1.0, 3)
    assert last["accuracy"] == pytest.approx(2 / 3)
    assert last["confidence"] == pytest.approx(2.6 / 3)
    assert found["ece"] == pytest.approx(0.2)
    assert found["nll"] == pytest.approx((-math.log(0.8) - math.log(0.2)) / 3)


def test_a_report_on_no_image_is_refused(accelerator: Accelerator) -> None:
    with pytest.raises(DataError, match="no image is left"):
        Calibration((1.0,), 4, NONE, CPU).figures(accelerator)


def test_kept_logits_come_in_the_order_of_ids(accelerator: Accelerator) -> None:
    kept = KeptLogits()
    kept.add(torch.tensor([4, 5]), torch.tensor([[4.0, 0.0], [5.0, 0.0]]), torch.tensor([1, 0]))
    kept.add(torch.tensor([2]), torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    logits, labels = kept.of_all(accelerator, 2)
    assert (logits[:, 0].tolist(), labels.tolist()) == ([2.0, 4.0, 5.0], [1, 1, 0])

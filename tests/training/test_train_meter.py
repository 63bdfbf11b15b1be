"""The training loss and the gradient norm of a log line."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.training.train_meter import TrainMeter


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_mean_loss_since_the_last_line_and_the_last_gradient_norm(accelerator: Accelerator) -> None:
    meter = TrainMeter(accelerator)
    for loss in (1.0, 2.0, 6.0):
        meter.add(torch.tensor(loss), torch.tensor(loss / 4))
    assert meter.read() == (3, 1.5)
    meter.add(torch.tensor(10.0), torch.tensor(0.25))
    assert meter.read() == (10, 0.25)
    assert meter.read()[0] == 0


def test_it_keeps_no_graph_and_loses_no_digits(accelerator: Accelerator) -> None:
    meter = TrainMeter(accelerator)
    for _ in range(10_000):
        meter.add(torch.tensor(0.1), torch.tensor(1.0))
    assert meter.read()[0] == pytest.approx(float(torch.tensor(0.1)), abs=1e-12)

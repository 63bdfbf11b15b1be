"""A loss that is not finite ends a run: at once on a CPU, a fixed number of updates later on a GPU."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from accelerate import Accelerator

from fastaug.errors import NonFiniteError
from fastaug.training.finite_check import BEHIND, FiniteCheck

GOOD, BAD = torch.tensor([1.0, -2.0]), torch.tensor([1.0, torch.inf])


@pytest.fixture
def check() -> FiniteCheck:
    """Of a single process."""
    return FiniteCheck(Accelerator(cpu=not torch.cuda.is_available()))


def test_on_a_cpu_the_update_is_ended(check: FiniteCheck) -> None:
    check.ask(GOOD, "the loss", 0)
    with pytest.raises(NonFiniteError, match=r"^the loss is not finite in update 7; lower optim\.lr"):
        check.ask(BAD, "the loss", 7)


@pytest.mark.gpu
def test_on_a_gpu_later_ones_go_on_until_it_is_asked_for(
    check: FiniteCheck, no_host_sync: Callable[[torch.device], AbstractContextManager[None]]
) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    good, bad = GOOD.to(device), BAD.to(device)
    with no_host_sync(device):
        check.ask(bad, "the loss", 7)
        for step in range(8, 7 + BEHIND):
            check.ask(good, "the loss", step)
        with pytest.raises(NonFiniteError, match="in update 7;"):
            check.ask(good, "the loss", 7 + BEHIND)
    check.settle()
    check.ask(bad, "the loss", 9)
    with pytest.raises(NonFiniteError, match="in update 9;"):
        check.settle()
    assert float(good.sum()) == -1  # the device is there

"""Ends a run whose loss or gradient is not finite: before the update on a CPU, soon after it on a GPU."""

from collections import deque

import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.distributed import finite_everywhere
from fastaug.errors import NonFiniteError

BEHIND = 2  # answers of a GPU that are outstanding before one is waited for: it always has work ahead


class FiniteCheck:
    """Asks of every update whether its numbers are finite on all processes, without making a GPU wait.

    On a CPU the answer is there at once. On a GPU it is looked at BEHIND questions later, the same on all processes,
    and wherever `settle` waits for what is outstanding: before anything of the network is logged, judged or saved.
    An assertion on the device would be as quick, but the device is lost with it, and DALI's threads then end the
    process before it can tell why.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        # the flag on the host, when it is there, and the message
        self._asked: deque[tuple[Tensor, torch.cuda.Event, str]] = deque()

    def ask(self, value: Tensor, what: str, step: int) -> None:
        """NonFiniteError if `value` of update `step`, or of an earlier one, is not finite; all processes must call it.

        `what` it is, for the message.
        """
        finite = finite_everywhere(self._accelerator, value)
        message = f"{what} is not finite in update {step}; lower optim.lr, or set optim.clip_grad"
        if finite.device.type == "cpu":
            _stop_unless(finite, message)
            return
        flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(finite.device))
        self._asked.append((flag, there, message))
        self._answer(BEHIND)

    def settle(self) -> None:
        """NonFiniteError if one of the updates so far was not finite; waits for the device."""
        self._answer(0)

    def _answer(self, outstanding: int) -> None:
        while len(self._asked) > outstanding:
            flag, there, message = self._asked.popleft()
            there.synchronize()
            _stop_unless(flag, message)


def _stop_unless(finite: Tensor, message: str) -> None:
    if not finite:
        raise NonFiniteError(message)

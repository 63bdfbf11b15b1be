"""Training loss and gradient norm between two log lines, kept on the device."""

import torch
from accelerate import Accelerator
from torch import Tensor


class TrainMeter:
    """Mean training loss and last gradient norm between two log lines; nothing leaves the device before `read`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self._norm = torch.zeros((), device=accelerator.device)
        self._updates = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Adds this process's share of one update's loss (their sum over processes is the loss).

        `norm`: of the update's gradient before clipping, the same on all processes.
        """
        self._sum += loss
        self._norm = norm
        self._updates += 1

    def state(self) -> dict[str, float]:
        """The sums over all processes, for a checkpoint; every process must call this."""
        return {"sum": self._accelerator.reduce(self._sum, reduction="sum").item(), "updates": self._updates}

    def restore(self, state: dict[str, float]) -> None:
        """Continues from `state`; the sum goes to the main process."""
        main = self._accelerator.is_main_process
        self._sum, self._updates = torch.full_like(self._sum, state["sum"] if main else 0.0), int(state["updates"])

    def read(self) -> tuple[float, float]:
        """Mean loss of the updates since the last call, and the last gradient norm; the host sync of a log line."""
        total = self._accelerator.reduce(self._sum, reduction="sum").item()
        mean = total / max(self._updates, 1)
        self._sum, self._updates = torch.zeros_like(self._sum), 0
        return mean, self._norm.item()

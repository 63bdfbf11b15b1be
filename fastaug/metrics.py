"""Sums kept on the device: training means with one host sync per log line, evaluation exact over all processes."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError


class TrainMeter:
    """Mean training loss between two log lines; nothing leaves the device before `read`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self._updates = 0

    def add(self, loss: Tensor) -> None:
        """Adds this process's share of one update's loss (their sum over processes is the loss)."""
        self._sum += loss
        self._updates += 1

    def read(self) -> float:
        """Mean loss of the updates added since the last call; the host sync of a log line."""
        total = self._accelerator.reduce(self._sum, reduction="sum").item()
        mean = total / max(self._updates, 1)
        self._sum, self._updates = torch.zeros_like(self._sum), 0
        return mean


class Evaluation:
    """top-1, top-5, negative log-likelihood and expected calibration error over every image exactly once.

    ECE: L1 over `bins` equal bins of the largest probability (Guo et al. 2017, arXiv:1706.04599). With fewer than five
    classes, top-5 is top-C.
    """

    def __init__(self, num_classes: int, bins: int, device: torch.device) -> None:
        self._images = torch.zeros((), dtype=torch.int64, device=device)
        self._num_classes, self._bins = num_classes, bins
        self._metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(num_classes, top_k=1, average="micro"),
                "top5": MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro"),
                "ece": MulticlassCalibrationError(num_classes, n_bins=bins, norm="l1"),
            },
            compute_groups=False,
        ).to(device)
        self._nll = MeanMetric().set_dtype(torch.float64).to(device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts one batch: logits [N, C], labels [N]."""
        if not len(labels):
            return
        logits = logits.double()
        self._images += len(labels)
        self._metrics.update(logits.softmax(-1), labels)
        self._nll.update(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))

    def result(self, accelerator: Accelerator) -> dict[str, Any]:
        """The figures over all processes; every process must call this."""
        images = int(accelerator.reduce(self._images, reduction="sum").item())
        if images == 0:
            return {"images": 0, "top1": None, "top5": None, "nll": None, "ece": None, "ece_bins": self._bins}
        figures = {name: float(value) for name, value in self._metrics.compute().items()}
        return {"images": images, **figures, "nll": float(self._nll.compute()), "ece_bins": self._bins}

"""Metrics of evaluation, summed on the device and exact over all processes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from fastaug.errors import NoImageError


class Evaluation:
    """Sums for top-1, top-5, F1, negative log-likelihood and expected calibration error over every image exactly once.

    F1 of a class: 2 hits / (its images + predictions of it); macro: their mean over the classes that occur in either.
    Balanced top-1: mean over the classes that have images of the share of theirs that is right (recall).
    ECE: L1 over `bins` equal bins of the largest probability (Guo et al. 2017, arXiv:1706.04599). With fewer than five
    classes, top-5 is top-C.
    """

    def __init__(self, num_classes: int, bins: int, device: torch.device) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, right, right among the first five
        self._classes = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # hits, predictions, images
        self._nll = torch.zeros((), dtype=torch.float64, device=device)
        self._ece = MulticlassCalibrationError(num_classes, n_bins=bins, norm="l1").to(device)
        self._top, self._bins = min(5, num_classes), bins

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts one batch: logits [N, C], labels [N]."""
        if not len(labels):
            return
        logits = logits.double()
        known = ~logits.isnan().any(1, keepdim=True)  # topk takes NaN for the largest of all
        named = logits.topk(self._top, dim=-1).indices
        hits = (named == labels[:, None]) & known
        self._counts += torch.stack([hits.new_tensor(len(labels), dtype=torch.int64), hits[:, 0].sum(), hits.sum()])
        self._classes[0].index_add_(0, labels, hits[:, 0].long())
        self._classes[1].index_add_(0, named[:, 0], known[:, 0].long())
        self._classes[2].index_add_(0, labels, torch.ones_like(labels))
        self._nll += F.cross_entropy(logits, labels, reduction="sum")
        self._ece.update(logits.softmax(-1), labels)

    def result(self, accelerator: Accelerator) -> dict[str, Any]:
        """The figures over all processes; every process must call this."""
        images, right, among = accelerator.reduce(self._counts, reduction="sum").tolist()
        if images == 0:
            raise NoImageError("no image of the split could be decoded")
        nll, ece = accelerator.reduce(self._nll, reduction="sum").item(), float(self._ece.compute())
        ece = math.nan if math.isnan(nll) else ece  # logits that are NaN have no confidence
        figures = {"top1": right / images, "top5": among / images, "nll": nll / images, "ece": ece}
        hits, predicted, shown = accelerator.reduce(self._classes, reduction="sum").double()
        f1 = _f1(hits, predicted, shown)
        known = [value for value in f1 if value is not None]
        figures |= {"ece_bins": self._bins, "f1_macro": sum(known) / len(known)}
        figures["balanced_top1"] = (hits / shown)[shown > 0].mean().item()
        return {"images": images, **figures, "f1_by_class": f1}


def _f1(hits: Tensor, predicted: Tensor, shown: Tensor) -> list[float | None]:
    """F1 of each class; None of one that is neither shown nor predicted."""
    return [None if math.isnan(value) else value for value in (2 * hits / (predicted + shown)).tolist()]

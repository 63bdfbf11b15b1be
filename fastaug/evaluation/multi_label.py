"""Metrics of images with any number of classes, exact over all processes."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from fastaug.distributed import gathered
from fastaug.errors import NoImageError

Scores = npt.NDArray[np.float64]


class MultiLabelEvaluation:
    """Figures of C sigmoids: mean average precision, F1, share of images told exactly, binary cross-entropy.

    mean_ap: mean of the average precision of the classes that have images (sum over thresholds of the rise in recall
    times precision, equal scores together). f1_micro: 2 hits / (images + predictions), over all classes at once;
    f1_macro: the mean over the classes that occur in either. A class is predicted from probability `threshold` on.
    """

    def __init__(self, multi_hot: Tensor, threshold: float) -> None:
        """`multi_hot` uint8 [N, C]: the classes of every image by id."""
        self._table, self._threshold = multi_hot, threshold
        self._ids: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, logits: Tensor, ids: Tensor) -> None:
        """Keeps one batch: logits [N, C] of the images `ids` [N]."""
        self._ids.append(ids.to(logits.device))
        self._logits.append(logits.float())

    def result(self, accelerator: Accelerator) -> dict[str, Any]:
        """The figures over all processes; every process must call this."""
        device, classes = accelerator.device, self._table.shape[1]
        ids = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *self._ids])
        logits = torch.cat([torch.empty(0, classes, device=device), *self._logits])
        ids, logits = (found.cpu() for found in gathered(accelerator, ids, logits))
        if not len(ids):
            raise NoImageError("no image of the split could be decoded")
        order = ids.argsort()
        logits, truth = logits[order].double(), self._table[ids[order]].double()
        predicted = (logits.sigmoid() >= self._threshold).double()  # NaN predicts nothing
        hits, said, shown = (predicted * truth).sum(0), predicted.sum(0), truth.sum(0)
        f1 = (2 * hits / (said + shown)).tolist()
        known = [value for value in f1 if value == value]
        precision = [average_precision(a, b) for a, b in zip(logits.T.numpy(), truth.T.numpy(), strict=True)]
        present = [value for value in precision if value is not None]
        every = float(said.sum() + shown.sum())
        return {
            "images": len(ids),
            "mean_ap": sum(present) / len(present) if present else 0.0,
            "f1_micro": 2 * float(hits.sum()) / every if every else 0.0,
            "f1_macro": sum(known) / len(known) if known else 0.0,
            "exact": float((predicted == truth).all(1).double().mean()),
            "bce": float(F.binary_cross_entropy_with_logits(logits, truth)),
            "threshold": self._threshold,
            "ap_by_class": precision,
            "f1_by_class": [value if value == value else None for value in f1],
        }


def average_precision(scores: Scores, truth: Scores) -> float | None:
    """Average precision of scores [N] for truth [N] of 0 and 1; None without a 1, 0 where a score is NaN."""
    if not truth.any():
        return None
    if np.isnan(scores).any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits = truth[order].cumsum()
    last = np.append(np.diff(scores[order]) != 0, True)  # of images with equal scores: no threshold tells them apart
    hits, among = hits[last], np.arange(1, len(scores) + 1)[last]
    return float((np.diff(hits, prepend=0) * hits / among).sum() / truth.sum())

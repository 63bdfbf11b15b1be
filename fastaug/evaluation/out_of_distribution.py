"""Out-of-distribution detection: how well a score tells images of the data from images of another set.

Images of the data (in-distribution) are the positive class, and a score is high where the network takes an image for
one of them. Max-softmax: its largest probability (Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136). Energy: the
logarithm of the sum of the exponentials of its logits, minus the free energy at temperature 1 (Liu et al., NeurIPS
2020, arXiv:2010.03759).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from scipy.stats import rankdata
from torch import Tensor

from fastaug.distributed import gathered

Scores = npt.NDArray[np.float64]
NAMES = ("max_softmax", "energy")


class KeptScores:
    """The scores of all images."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:  # noqa: ARG002
        """Hears of a batch."""
        logits = logits.double()
        self._ids.append(ids.to(logits.device))
        self._scores.append(torch.stack([logits.softmax(1).amax(1), logits.logsumexp(1)], 1))

    def of_all(self, accelerator: Accelerator) -> dict[str, Scores]:
        """Scores [N] by name, of the images of all processes; every process must call this."""
        device = accelerator.device
        ids = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *self._ids])
        scores = torch.cat([torch.empty(0, len(NAMES), dtype=torch.float64, device=device), *self._scores])
        _, scores = gathered(accelerator, ids, scores)
        return dict(zip(NAMES, scores.T.cpu().numpy(), strict=True))


def auroc(inside: Scores, outside: Scores) -> float:
    """The area under the ROC curve: the chance that an image inside scores above one outside, half of it where equal.

    NaN where a score is.
    """
    both = np.concatenate([inside, outside])
    if np.isnan(both).any():
        return math.nan
    ranks = rankdata(both)[: len(inside)].sum()
    return float((ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def fpr_at_95_tpr(inside: Scores, outside: Scores) -> float:
    """The share of images outside that are taken for images inside where at least 95 % of those inside are.

    By the highest threshold, one of the scores inside, at or above which 95 % or more of them lie. NaN if a score is.
    """
    if np.isnan(inside).any() or np.isnan(outside).any():
        return math.nan
    accepted = -(-len(inside) * 95 // 100)
    threshold = np.sort(inside)[len(inside) - accepted]
    return float((outside >= threshold).mean())


def detection(inside: dict[str, Scores], outside: dict[str, Scores]) -> dict[str, Any]:
    """Figures of each score, and how many images there were."""
    figures: dict[str, Any] = {"images": len(inside[NAMES[0]]), "ood_images": len(outside[NAMES[0]])}
    for name in NAMES:
        pair = inside[name], outside[name]
        figures[name] = {"auroc": auroc(*pair), "fpr95": fpr_at_95_tpr(*pair)}
    return figures

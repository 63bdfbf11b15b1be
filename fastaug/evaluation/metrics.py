"""Metrics of evaluation, summed on the device and exact over all processes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from fastaug.distributed import gathered
from fastaug.errors import NoImageError
from fastaug.evaluation.class_table import class_details


class Evaluation:
    """Sums for all figures of a split over every image exactly once.

    Precision of a class: hits / predictions of it; recall: hits / its images; F1: 2 hits / (images + predictions).
    macro: their mean over the classes that occur in either, one without images or predictions counted as 0 where it
    would be divided by them (scikit-learn's zero_division=0); weighted: by images. Weighted recall is top-1.
    Balanced top-1 (balanced accuracy): mean recall of the classes that have images.
    ECE: L1 over `bins` equal bins of the largest probability (Guo et al. 2017, arXiv:1706.04599). With fewer than five
    classes, top-5 is top-C.
    """

    def __init__(self, num_classes: int, bins: int, device: torch.device, *, pairs: bool = False) -> None:
        """`pairs`: what each image is taken for is kept too, for `details`."""
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, right, right among the first five
        self._classes = torch.zeros(3, num_classes, dtype=torch.int64, device=device)  # hits, predictions, images
        self._nll = torch.zeros((), dtype=torch.float64, device=device)
        self._ece = MulticlassCalibrationError(num_classes, n_bins=bins, norm="l1").to(device)
        self._top, self._bins, self._size = min(5, num_classes), bins, num_classes
        self._pairs: list[Tensor] | None = [torch.empty(0, dtype=torch.int64, device=device)] if pairs else None

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
        if self._pairs is not None:
            self._pairs.append((labels * self._size + named[:, 0])[known[:, 0]])
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
        classes = accelerator.reduce(self._classes, reduction="sum").double()
        figures |= {"ece_bins": self._bins, **_averages(*classes)}
        return {"images": images, **figures, "f1_by_class": _f1(*classes)}

    def details(self, accelerator: Accelerator, names: Sequence[str]) -> dict[str, Any]:
        """Figures of single classes of these names, see `class_details`; every process must call this."""
        assert self._pairs is not None
        codes, counts = torch.cat(self._pairs).unique(return_counts=True)
        codes, counts = gathered(accelerator, codes, counts)
        pairs = {divmod(code, self._size): n for code, n in zip(codes.tolist(), counts.tolist(), strict=True)}
        return class_details(accelerator.reduce(self._classes, reduction="sum"), pairs, names)


def _f1(hits: Tensor, predicted: Tensor, shown: Tensor) -> list[float | None]:
    """F1 of each class; None of one that is neither shown nor predicted."""
    return [None if math.isnan(value) else value for value in (2 * hits / (predicted + shown)).tolist()]


def _averages(hits: Tensor, predicted: Tensor, shown: Tensor) -> dict[str, float]:
    """Averages over the classes, by name."""
    occurs = (predicted + shown > 0).tolist()
    by_class = {
        "f1": 2 * hits / (predicted + shown).clamp_min(1),
        "precision": hits / predicted.clamp_min(1),
        "recall": hits / shown.clamp_min(1),
    }
    found = {}
    for name, values in by_class.items():
        known = [value for value, is_there in zip(values.tolist(), occurs, strict=True) if is_there]
        found[f"{name}_macro"] = sum(known) / len(known)
    for name in ("f1", "precision"):
        found[f"{name}_weighted"] = ((by_class[name] * shown).sum() / shown.sum()).item()
    return found | {"balanced_top1": by_class["recall"][shown > 0].mean().item()}

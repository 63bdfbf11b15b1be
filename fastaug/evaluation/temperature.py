"""Temperature scaling (Guo et al., ICML 2017, arXiv:1706.04599): logits divided by one number, fitted on images apart.

T changes no prediction, only how sure the network is of it: T above 1 where it is surer than right.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.distributed import gathered
from fastaug.errors import DataError


class KeptLogits:
    """Logits and labels of all images, for `fit`."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Hears of a batch."""
        self._ids.append(ids.to(logits.device))
        self._rows.append(torch.cat([logits.float(), labels[:, None].float()], 1))  # labels below 2**24: exact

    def of_all(self, accelerator: Accelerator, classes: int) -> tuple[Tensor, Tensor]:
        """Logits [N, C] and labels [N] of all processes, in the order of ids; every process must call this."""
        device = accelerator.device
        ids = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *self._ids])
        rows = torch.cat([torch.empty(0, classes + 1, device=device), *self._rows])
        ids, rows = gathered(accelerator, ids, rows)
        rows = rows[ids.argsort()]
        return rows[:, :-1], rows[:, -1].long()


def fit(logits: Tensor, labels: Tensor) -> float:
    """The T that minimises the mean NLL of softmax(logits [N, C] / T) for labels [N].

    NLL is convex in b = 1 / T: its slope, the mean over images of (expected logit - logit of the label), rises with b,
    and its only zero is found by halving an interval until no float64 lies between its ends. DataError where it has
    none: every image is right (then NLL falls for ever as T goes to 0), or none is better than guessed.
    """
    logits, count = logits.double(), len(labels)
    if not logits.isfinite().all():
        raise DataError("temperature: logits of the network are not finite; evaluate another checkpoint")
    own = logits.gather(1, labels[:, None]).squeeze(1)
    logits, own = logits - own[:, None], own - own  # only differences count

    def slope(b: float) -> float:
        return float(((b * logits).softmax(1) * logits).sum(1).mean())

    if not (logits.amax(1) > 0).any():
        raise DataError(
            f"temperature: the network is right about all {count} images that it is to be fitted on, so the NLL falls "
            "for ever as T goes to 0; fit it on more images, or on harder ones"
        )
    if slope(0.0) >= 0:
        raise DataError(
            f"temperature: on the {count} images that it is to be fitted on the network is no better than guessing, so "
            "no T is best; train it further"
        )
    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    while low < (middle := low + (high - low) / 2) < high:
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high


class Calibration:
    """NLL, expected calibration error and reliability diagram of a split, at several temperatures at once.

    Of `bins` equal bins of the largest probability, a bound belonging to the bin above it, 1 to the last.
    """

    def __init__(self, temperatures: Sequence[float], bins: int, without: Tensor, device: torch.device) -> None:
        """`without`: sorted ids [M] on the host of images that do not count."""
        self.temperatures, self.bins, self._without = temperatures, bins, without
        # Of each bin: images, those that are right, sum of confidences.
        self._sums = torch.zeros(len(temperatures), bins, 3, dtype=torch.float64, device=device)
        self._nll = torch.zeros(len(temperatures), dtype=torch.float64, device=device)

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Hears of a batch."""
        counts = ~torch.isin(ids, self._without).to(logits.device)
        logits, labels = logits[counts].double(), labels[counts]
        right = (logits.argmax(1) == labels).double()
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64, device=logits.device)
        for number, temperature in enumerate(self.temperatures):
            logs = (logits / temperature).log_softmax(1)
            confidence = logs.amax(1).exp()
            self._nll[number] -= logs.gather(1, labels[:, None]).sum()
            place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, self.bins - 1)
            self._sums[number].index_add_(0, place, torch.stack([torch.ones_like(right), right, confidence], 1))

    def figures(self, accelerator: Accelerator) -> list[dict[str, Any]]:
        """Figures at each temperature; every process must call this. DataError where no image counted."""
        sums = accelerator.reduce(self._sums, reduction="sum").cpu()
        nll = accelerator.reduce(self._nll, reduction="sum").tolist()
        if not sums[0, :, 0].sum():
            raise DataError("temperature: no image is left to report on; fit it on a smaller share")
        return [self._of(*each) for each in zip(self.temperatures, sums, nll, strict=True)]

    def _of(self, temperature: float, sums: Tensor, nll: float) -> dict[str, Any]:
        images = float(sums[:, 0].sum())
        gap = math.nan if math.isnan(nll) else float((sums[:, 1] - sums[:, 2]).abs().sum())
        rows = [
            {
                "from": number / self.bins,
                "to": (number + 1) / self.bins,
                "images": int(count),
                "accuracy": right / count if count else None,
                "confidence": sure / count if count else None,
            }
            for number, (count, right, sure) in enumerate(sums.tolist())
        ]
        return {"temperature": temperature, "nll": nll / images, "ece": gap / images, "reliability": rows}

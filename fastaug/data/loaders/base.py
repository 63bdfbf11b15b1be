"""What every loader does: from requests (epoch, ids) to batches of decoded images.

Sample identity, order and crops are the caller's. Every loader drops damaged images from its batches and counts them in
`skipped`; what is left of a batch keeps its order. None draws a random number that is not keyed by (seed, epoch, id).
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.sampler import Request


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`; to a GPU from pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Loader(Protocol):
    """What the training and evaluation loops need of a loader."""

    skipped: dict[int, str]  # id -> why it was left out, of the images met so far

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; shorter where images are damaged."""

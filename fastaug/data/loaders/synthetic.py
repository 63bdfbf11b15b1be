"""Random pixels in place of a set, for profiling the rest of the step."""

from collections.abc import Iterable, Iterator

import torch

from fastaug.batch import Batch
from fastaug.data.loaders.base import to_device
from fastaug.data.sampler import Request
from fastaug.recipe.schema import Data


class SyntheticLoader:
    """Random pixels made once, for profiling the rest of the step: label = id modulo the number of classes."""

    BANK = 64  # different images; the rest repeat

    def __init__(self, data: Data, side: int, seed: int, device: torch.device):
        shape = (self.BANK, side, side, 3)
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.classes, self.device = data.synthetic_classes, device
        self.skipped: dict[int, str] = {}

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order."""
        for request in requests:
            ids = torch.from_numpy(request.ids)
            on_device = to_device(ids, self.device)
            draws = torch.from_numpy(request.draws())
            yield Batch(self.images[on_device % self.BANK], on_device % self.classes, ids, draws)

"""A set that fits in memory: decoded once, kept on the device, batches are gathers."""

from collections.abc import Iterable, Iterator

import torch

from fastaug.batch import Batch
from fastaug.data.loaders.base import to_device
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.sampler import Ids, Request


class ResidentLoader:
    """A set that fits in memory: decoded once by a DaliLoader, then batches are gathers on the device."""

    def __init__(self, source: DaliLoader, ids: Ids):
        self.labels, self.skipped = source.labels, source.skipped
        chunks = [Request(0, ids[i : i + source.largest_batch]) for i in range(0, len(ids), source.largest_batch)]
        decoded = list(source.batches(chunks))
        self.images = torch.cat([batch.images for batch in decoded])
        present = torch.cat([batch.ids for batch in decoded])
        self.rows = torch.full((len(self.labels),), -1, dtype=torch.int64)
        self.rows[present] = torch.arange(len(present))

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order."""
        for request in requests:
            request = request.keep((self.rows[torch.from_numpy(request.ids)] >= 0).numpy())
            ids, draws = torch.from_numpy(request.ids), torch.from_numpy(request.draws())
            device = self.images.device
            yield Batch(self.images[to_device(self.rows[ids], device)], to_device(self.labels[ids], device), ids, draws)

"""The loader of a set that fits in memory: decoded once, kept on the device, batches are gathers."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.loaders.base import Loading, to_device
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.host_transform import transformed_ahead
from fastaug.data.loaders.multichannel import ChannelLoader
from fastaug.data.loaders.shards import RawShardLoader
from fastaug.data.sampler import Ids, Request


class ResidentLoader:
    """The loader of a set that fits in memory: decoded once by another loader, then batches are gathers on the device.

    Where a host transform works on them, images stay on the host, and batches are gathered there, transformed and
    uploaded ahead of the caller.
    """

    def __init__(self, source: DaliLoader | RawShardLoader | ChannelLoader, ids: Ids, loading: Loading):
        """`source` has no transform of its own; it is asked for the images `ids` once."""
        self.labels, self.skipped, self.seed, self.loading = source.labels, source.skipped, source.crop.seed, loading
        size = source.loading.largest_batch
        decoded = list(source.batches(Request(0, ids[i : i + size]) for i in range(0, len(ids), size)))
        self.images = torch.cat([batch.images for batch in decoded])
        present = torch.cat([batch.ids for batch in decoded])
        self.places = torch.full((len(self.labels),), -1, dtype=torch.int64)
        self.places[present] = torch.arange(len(present))

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order."""
        places, device = self.places.numpy(), self.loading.device
        held = (request.keep(places[request.ids] >= 0) for request in requests)
        gathered: Iterator[tuple[Request, Tensor]]
        if self.loading.transform is None:
            gathered = ((one, self.images[to_device(self.places[torch.from_numpy(one.ids)], device)]) for one in held)
        else:
            gathered = transformed_ahead(self.images, places.__getitem__, held, self.seed, self.loading)
        for request, images in gathered:
            ids, draws = torch.from_numpy(request.ids), torch.from_numpy(request.draws())
            yield Batch(images, to_device(self.labels[ids], device), ids, draws)

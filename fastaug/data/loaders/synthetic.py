"""A loader of random pixels in place of a set, for profiling the rest of the step."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.loaders.base import Crop, Loading, to_device
from fastaug.data.loaders.host_transform import transformed_ahead
from fastaug.data.sampler import Request


class SyntheticLoader:
    """A loader of random pixels made once, for profiling the rest of the step: label = id modulo number of classes.

    They lie on the device; on the host where a host transform works on them, whose results are prefetched.
    """

    BANK = 64  # different images; the rest repeat

    def __init__(self, classes: int, crop: Crop, loading: Loading):
        shape = (self.BANK, crop.side, crop.side, 3 if crop.channels == 1 else crop.channels)  # grey is made of colour
        generator = torch.Generator().manual_seed(crop.seed)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.images = images.to(loading.device) if loading.transform is None else images
        self.classes, self.crop, self.loading = classes, crop, loading
        self.skipped: dict[int, str] = {}

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order."""
        device = self.loading.device
        gathered: Iterator[tuple[Request, Tensor]]
        if self.loading.transform is None:
            gathered = (
                (one, self.images[to_device(torch.from_numpy(one.ids) % self.BANK, device)]) for one in requests
            )
        else:
            gathered = transformed_ahead(self.images, lambda i: i % self.BANK, requests, self.crop.seed, self.loading)
        for request, images in gathered:
            ids, draws = torch.from_numpy(request.ids), torch.from_numpy(request.draws())
            yield Batch(images, to_device(ids % self.classes, device), ids, draws)

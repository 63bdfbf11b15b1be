"""The loader of grey images: another loader's batches with one channel in place of three."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import Request

WEIGHTS = (19595, 38470, 7471)  # of red, green and blue in 65536ths; ITU-R BT.601 as Pillow's mode "L" rounds it


class GreyLoader:
    """The loader of grey images: batches of the `source` as uint8 [N, S, S, 1].

    Images are decoded, cut and put under a fixed policy in colour, and made grey last: one way for files, shards and
    resident images on any device. Of an image without colour every pixel stays as it is.
    """

    def __init__(self, source: Loader) -> None:
        self.source, self.skipped = source, source.skipped

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order."""
        for batch in self.source.batches(requests):
            yield batch._replace(images=grey(batch.images))


def grey(images: Tensor) -> Tensor:
    """Luma [..., 1] of uint8 RGB [..., 3]: 0.299 R + 0.587 G + 0.114 B, rounded; equal channels stay what they are."""
    red, green, blue = (images[..., i].int() * weight for i, weight in enumerate(WEIGHTS))
    return ((red + green + blue + 2**15) >> 16).to(torch.uint8)[..., None]

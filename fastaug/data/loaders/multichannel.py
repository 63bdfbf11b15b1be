"""The loader of images of n channels: files read and decoded whole on threads, windows cut and resized on the host."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.channel_files import decode_channels
from fastaug.data.image_files import DamagedImageError, Pixels, read_image_file
from fastaug.data.image_headers import Status
from fastaug.data.index import Index
from fastaug.data.loaders.base import Crop, Loading, to_device
from fastaug.data.loaders.cpu_resize import Resizer
from fastaug.data.loaders.host_transform import drawn
from fastaug.data.loaders.prefetch import ahead
from fastaug.data.sampler import Request


class ChannelLoader:
    """The loader of images of n channels, [N, S, S, C]: what DALI does not decode.

    Windows, their draws and the resizing kernel are those of DaliLoader. `prefetch` batches are in preparation, two of
    them at a time; of these the decoded images are in memory whole.
    """

    def __init__(self, index: Index, crop: Crop, loading: Loading):
        self.index, self.crop, self.loading = index, crop, loading
        self.labels = torch.from_numpy(index.labels)
        self.skipped: dict[int, str] = {}
        self._changed: set[int] = set()  # ids whose file was changed since it was indexed

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; all threads end with the iterator."""
        device, threads = self.loading.device, self.loading.threads
        resizer = Resizer(threads, self.crop.interpolation, self.crop.channels)
        with ThreadPoolExecutor(threads, "fastaug-read") as pool:

            def prepared(request: Request) -> tuple[Request, Tensor]:
                found = list(pool.map(self._decoded, request.ids.tolist()))
                request = request.keep(np.array([one is not None for one in found], dtype=bool))
                return request, self._cut(request, [one for one in found if one is not None], resizer)

            # Two threads wait for those that decode and resize, so that these never wait for the next batch.
            for request, images in ahead(prepared, requests, self.loading.prefetch, threads=2):
                ids, draws = torch.from_numpy(request.ids), torch.from_numpy(request.draws())
                yield Batch(to_device(images, device), to_device(self.labels[ids], device), ids, draws)

    def _decoded(self, sample: int) -> Pixels | None:
        """An image, uint8 [H, W, C]; None where it is damaged."""
        if self.index.status[sample] == Status.DAMAGED:
            self.skipped.setdefault(sample, self.index.reasons[sample])
        if sample in self.skipped:
            return None
        path = self.index.path(sample)
        try:
            data, stamp = read_image_file(path)
            self._warn_if_changed(sample, path, stamp)
            return decode_channels(data, self.crop.channels)
        except DamagedImageError as error:
            self.skipped[sample] = str(error)
            return None

    def _warn_if_changed(self, sample: int, path: bytes, stamp: tuple[int, int]) -> None:
        indexed = self.index.stamps
        if indexed is not None and stamp != tuple(indexed[sample, :2].tolist()) and sample not in self._changed:
            self._changed.add(sample)
            name = path.decode(sys.getfilesystemencoding(), "backslashreplace")
            warnings.warn(f"{name} was changed since it was indexed; read as it is now", stacklevel=1)

    def _cut(self, request: Request, images: list[Pixels], resizer: Resizer) -> Tensor:
        extents = np.array([image.shape[:2] for image in images], dtype=np.int64).reshape(-1, 2)
        windows = self.crop.windows(request, extents[:, 0], extents[:, 1])
        cuts = [
            image[top : top + height, left : left + width]
            for image, (top, left, height, width) in zip(images, windows.window.tolist(), strict=True)
        ]
        return resizer.batch(cuts, windows, self.crop.side, drawn(self.loading, self.crop.seed, request))

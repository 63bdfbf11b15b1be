"""The loaders of packed sets and prepared shards: encoded files by DaliLoader, raw pixels without it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.crop_windows import Windows
from fastaug.data.image_headers import Status
from fastaug.data.loaders.base import Crop, Loading, to_device
from fastaug.data.loaders.cpu_resize import Resizer
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.host_transform import drawn
from fastaug.data.loaders.prefetch import ahead
from fastaug.data.packed.index import PackedIndex
from fastaug.data.packed.records import OWN_FILE
from fastaug.data.sampler import Request
from fastaug.data.shards.layout import ShardIndex


def shard_loader(index: PackedIndex, crop: Crop, loading: Loading) -> "PackedLoader | RawShardLoader":
    """The loader of a packed set, or of a shard folder's format."""
    if isinstance(index, ShardIndex) and index.settings.format == "raw":
        return RawShardLoader(index, crop, loading)
    return PackedLoader(index, crop, loading)


class PackedLoader(DaliLoader):
    """The loader of packed sets and JPEG shards: a DaliLoader whose image files lie in larger files."""

    def __init__(self, index: PackedIndex, crop: Crop, loading: Loading):
        super().__init__(index, crop, loading, encoded=index.encoded)
        self.packed = index

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order, as DaliLoader."""
        return super().batches(map(self._announced, requests))

    def _announced(self, request: Request) -> Request:
        packed = self.packed
        ids = request.ids[packed.shard[request.ids] != OWN_FILE]
        packed.files.announce(*(column[ids].tolist() for column in (packed.shard, packed.offsets, packed.lengths)))
        return request


class RawShardLoader:
    """The loader of raw shards: cuts and resizes pixels ahead of the caller; nothing is decoded."""

    def __init__(self, index: ShardIndex, crop: Crop, loading: Loading):
        self.index, self.crop, self.loading = index, crop, loading
        self.labels = torch.from_numpy(index.labels)
        self.skipped: dict[int, str] = {}

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; `prefetch` more are being made meanwhile."""
        device = self.loading.device
        resizer = Resizer(self.loading.threads, self.crop.interpolation)  # its threads end with the iterator

        def prepared(request: Request) -> tuple[Request, Tensor]:
            return request, self._images(request, resizer)

        # Two threads wait for the resizer's, so that those never wait for the windows of the next batch.
        for request, images in ahead(prepared, map(self._without_damaged, requests), self.loading.prefetch, threads=2):
            ids, draws = torch.from_numpy(request.ids), torch.from_numpy(request.draws())
            yield Batch(to_device(images, device), to_device(self.labels[ids], device), ids, draws)

    def _without_damaged(self, request: Request) -> Request:
        damaged = self.index.status[request.ids] == Status.DAMAGED
        for sample in request.ids[damaged].tolist():
            self.skipped.setdefault(sample, self.index.reasons[sample])
        return request.keep(~damaged)

    def _images(self, request: Request, resizer: Resizer) -> Tensor:
        side = self.crop.side
        if not len(request.ids):
            return torch.empty((0, side, side, 3), dtype=torch.uint8)
        windows = self.crop.windows(request, self.index.heights[request.ids], self.index.widths[request.ids])
        after = drawn(self.loading, self.crop.seed, request)
        images = resizer.batch(_Cuts(self.index, request, windows), windows, side, after)
        return images.pin_memory() if self.loading.device.type == "cuda" else images


class _Cuts(Sequence[npt.NDArray[np.uint8]]):
    """The cut windows of a request, each read when it is asked for: in the thread that resizes it."""

    def __init__(self, index: ShardIndex, request: Request, windows: Windows) -> None:
        self.stored, self.ids, self.windows = index, request.ids.tolist(), windows.window.tolist()
        row = 3 * index.widths[request.ids].astype(np.int64)  # bytes
        first, length = windows.window[:, 0] * row, windows.window[:, 2] * row
        begin = index.offsets[request.ids] + first
        index.files.announce(index.shard[request.ids].tolist(), begin.tolist(), length.tolist())

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, row: slice) -> Any: ...
    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return self.stored.pixels(self.ids[row], *self.windows[row])

"""Loaders: from requests (epoch, ids) to batches of decoded images. Sample identity, order and crops are the caller's.

Every loader drops damaged images from its batches and counts them in `skipped`; what is left of a batch keeps its
order. None draws a random number that is not keyed by (seed, epoch, id).
"""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastaug import windows
from fastaug.errors import DataError
from fastaug.index import Index, Status
from fastaug.order import Ids, Request
from fastaug.recipe import Data
from fastaug.seeding import Key, Stream

Inputs = tuple[Any, ...]  # what the DALI graph is fed for one batch, see pipelines/folder.py


class Batch(NamedTuple):
    """Decoded images with their identity.

    `images` [N, S, S, 3] uint8 on the training device; `labels` [N] int64 on the same device; `ids` [N] int64 on the
    host, where keyed draws are made.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    draws: Tensor  # [N] int64 on the host: what keyed draws are made for; the ids unless images are repeated


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`; to a GPU from pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Loader(Protocol):
    """What the training and evaluation loops need of a loader."""

    skipped: dict[int, str]  # id -> why it was left out, of the images met so far

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; shorter where images are damaged."""


@dataclass(frozen=True)
class Crop:
    """Which windows of `side` pixels a loader cuts: `kind` as data.crop, the rest as the keys of the same name."""

    kind: str
    side: int
    data: Data
    seed: int

    def windows(self, request: Request, index: Index) -> windows.Windows:
        heights, widths, side = index.heights[request.ids], index.widths[request.ids], self.side
        if self.kind == "rrc":
            key, draws = Key(self.seed, request.epoch, Stream.WINDOW), request.draws()
            return windows.random_resized(key, draws, heights, widths, side, self.data.scale, self.data.ratio)
        if self.kind == "center":
            return windows.center(heights, widths, side, self.data.crop_pct)
        return windows.whole(heights, widths, side)


class DaliLoader:
    """Decodes, crops and resizes encoded files with DALI while the caller works on earlier batches.

    A damaged file makes DALI give up a whole batch and the pipeline with it. The loader then asks for the images of
    that batch one by one, remembers the damaged ones and starts again from the same batch with a new pipeline.
    """

    def __init__(self, index: Index, data: Data, crop: Crop, *, largest_batch: int, threads: int, device: torch.device):
        self.index, self.data, self.crop, self.device = index, data, crop, device
        self.largest_batch, self.threads = largest_batch, threads
        self.labels = torch.from_numpy(index.labels)
        self.skipped: dict[int, str] = {}
        self._pipeline = self._build(largest_batch, self._next_inputs)
        self._source: Iterator[Request] = iter(())
        self._waiting: deque[Request] = deque()  # scheduled and not yet delivered

    def _build(self, batch_size: int, source: Callable[[], Inputs]) -> Any:
        from pipelines.folder import build_folder_pipeline

        return build_folder_pipeline(
            source,
            batch_size=batch_size,
            threads=self.threads,
            device_id=self.device.index or 0 if self.device.type == "cuda" else None,
            prefetch=self.data.prefetch,
            side=self.crop.side,
            interpolation=self.data.interpolation,
            exif=self.data.exif,
        )

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; data.prefetch more are being decoded meanwhile."""
        if self._waiting:  # the last caller left half-way: what it did not take is still in the pipeline
            self._pipeline = self._build(self.largest_batch, self._next_inputs)
        self._source, self._waiting = iter(requests), deque()
        self._pipeline.reset()
        self._pipeline.schedule_run()  # the first call schedules data.prefetch batches
        while True:
            while self._waiting and not len(self._waiting[0].ids):
                yield self._batch(self._waiting.popleft(), self._nothing())
            try:
                (output,) = self._pipeline.share_outputs(cuda_stream=self._stream())
            except StopIteration:
                return
            except RuntimeError:
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # raises what the device itself has to report
                self._restart()
                continue
            images = torch.from_dlpack(output.as_tensor())  # no copy: the executor hands over the memory
            self._pipeline.release_outputs()
            request = self._waiting.popleft()
            self._pipeline.schedule_run()
            yield self._batch(request, images)

    def _stream(self) -> Any:
        """The stream that is to see finished images; None on a CPU."""
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _nothing(self) -> Tensor:
        side = self.crop.side
        return torch.empty((0, side, side, 3), dtype=torch.uint8, device=self.device)

    def _batch(self, request: Request, images: Tensor) -> Batch:
        ids = torch.from_numpy(request.ids)
        draws = torch.from_numpy(request.draws())
        return Batch(images, to_device(self.labels[ids], self.device), ids, draws)

    def _next_inputs(self) -> Inputs:
        """What DALI is fed for the next request that has an image to decode; StopIteration behind the last."""
        for request in self._source:
            request = self._without_damaged(request)
            self._waiting.append(request)
            if len(request.ids):
                return self._inputs(request)
        raise StopIteration

    def _without_damaged(self, request: Request) -> Request:
        damaged = self.index.status[request.ids] == Status.DAMAGED
        for sample in request.ids[damaged]:
            self.skipped.setdefault(int(sample), self.index.reasons[int(sample)])
        known = np.fromiter((int(sample) in self.skipped for sample in request.ids), bool, len(request.ids))
        return request.keep(~known)

    def _inputs(self, request: Request) -> Inputs:
        """Paths, and crop windows as the graph takes them."""
        w = self.crop.windows(request, self.index)
        paths = [np.frombuffer(self.index.path(int(sample)), dtype=np.uint8) for sample in request.ids]
        anchor, extent = w.window[:, :2].astype(np.int32), w.window[:, 2:].astype(np.int32)
        return paths, anchor, extent, w.size.astype(np.float32), w.offset.astype(np.int32)

    def _restart(self) -> None:
        """Finds what is damaged in the batch that failed and goes on from it with a new pipeline."""
        requests = list(self._waiting)
        failed = requests[0]
        reasons = {int(s): self._reason(failed._replace(ids=np.array([s]))) for s in failed.ids}
        damaged = {sample: reason for sample, reason in reasons.items() if reason is not None}
        if len(damaged) == len(failed.ids) > 1:
            sample, reason = next(iter(damaged.items()))
            raise DataError(
                f"none of the {len(damaged)} images of a batch can be decoded; first {self._name(sample)}: {reason}"
            )
        if not damaged:
            raise DataError(
                f"decoding a batch of {len(failed.ids)} images failed, yet each of them decodes alone (first: "
                f"{self._name(int(failed.ids[0]))}); is the machine out of memory? lower train.batch_size"
            )
        self.skipped.update(damaged)
        self._source, self._waiting = itertools.chain(requests, self._source), deque()
        self._pipeline = self._build(self.largest_batch, self._next_inputs)
        self._pipeline.schedule_run()

    def _reason(self, request: Request) -> str | None:
        """Why the one image of `request` cannot be decoded, or None when it can."""
        inputs = iter([self._inputs(request)])
        pipeline = self._build(1, lambda: next(inputs))  # DALI takes functions, not built-in methods
        pipeline.schedule_run()
        try:
            pipeline.share_outputs()
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            after = lines.index("encountered:") + 1 if "encountered:" in lines else 0  # behind DALI's own traceback
            return lines[after][:300]
        pipeline.release_outputs()
        return None

    def _name(self, sample: int) -> str:
        return self.index.path(sample).decode(sys.getfilesystemencoding(), "backslashreplace")


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

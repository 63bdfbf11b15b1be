"""What a run takes: how long it trains, how long it waits for batches, how much memory it has had."""

import resource
import time
from collections.abc import Iterator

import torch

from fastaug.batch import Batch
from fastaug.training.build import Progress


class Awaited:
    """An iterator over a loader's batches that counts their images and the seconds that this process has waited.

    On a GPU the device may still work meanwhile: the share of waiting is the most that loading can cost.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.seconds, self.images = batches, 0.0, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            batch = next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start
        self.images += len(batch.ids)
        return batch


class Clock:
    """Training time, without evaluation and checkpoints; throughput and waiting since the last log line."""

    def __init__(self, progress: Progress, batches: Awaited) -> None:
        self._progress, self._batches = progress, batches
        self._started: float | None = time.perf_counter()
        self._lap = (progress.images_seen, progress.train_seconds, batches.seconds)

    def pause(self) -> None:
        """Stops counting."""
        if self._started is not None:
            self._progress.train_seconds += time.perf_counter() - self._started
            self._started = None

    def resume(self) -> None:
        """Goes on counting."""
        if self._started is None:
            self._started = time.perf_counter()

    def epoch(self) -> float:
        """Seconds of training since the last call, or since the present epoch began."""
        self.pause()
        self.resume()
        progress = self._progress
        seconds, progress.epoch_began = progress.train_seconds - progress.epoch_began, progress.train_seconds
        return seconds

    def lap(self) -> tuple[float, float]:
        """Images per second, and the share of the time spent waiting for batches, since the last call."""
        self.pause()
        self.resume()
        progress = self._progress
        now = (progress.images_seen, progress.train_seconds, self._batches.seconds)
        images, seconds, waited = (after - before for after, before in zip(now, self._lap, strict=True))
        self._lap = now
        return images / seconds, waited / seconds


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory of this process so far, in MiB: resident on the host, and allocated by torch on a GPU."""
    found = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
    return found | ({"peak_cuda_mib": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {})

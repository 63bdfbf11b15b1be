"""Batches of encoded image files, decoded, cropped and resized by DALI while the caller works on earlier ones."""

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.index import Index
from fastaug.data.loaders.base import Crop, Loading, to_device
from fastaug.data.loaders.cpu_resize import Resizer
from fastaug.data.loaders.dali_feed import Encoded, Feed, Inputs, Task
from fastaug.data.loaders.host_transform import drawn
from fastaug.data.loaders.prefetch import in_background
from fastaug.data.sampler import Request
from fastaug.errors import DataError

Result = Callable[[], Tensor]  # waits for a batch's images, or raises what became of them


class DaliLoader:
    """The loader of encoded image files by DALI: decodes, crops and resizes them ahead of the caller.

    On a GPU DALI's graph does all of it. On a CPU, and for a GPU where a host transform comes before the upload (not
    yet measured), it decodes the windows, and as many threads of a Resizer resize them and apply the transform.
    A damaged file makes DALI give up a whole batch and the pipeline with it. The loader then asks for the images of
    that batch one by one, remembers the damaged ones and starts again from the same batch with a new pipeline.
    """

    def __init__(self, index: Index, crop: Crop, loading: Loading, encoded: Encoded | None = None):
        """`encoded` gives the bytes of an image file by id; None: they are read from the paths of the index."""
        self.index, self.crop, self.loading = index, crop, loading
        self.labels = torch.from_numpy(index.labels)
        self._on_gpu = loading.device.type == "cuda" and loading.transform is None  # where images are made
        self._feed = Feed(index, crop, encoded, inputs=5 if self._on_gpu else 3)
        self.skipped = self._feed.skipped
        self._resizer = None if self._on_gpu else Resizer(loading.threads, crop.interpolation)
        self._pipeline = self._build(loading.largest_batch, self._feed.next_inputs)
        self._open: Callable[[], Generator[Batch, None, None] | None] = lambda: None  # the stream that is not over

    def _build(self, batch_size: int, source: Callable[[], Inputs]) -> Any:
        from pipelines.folder import build_folder_pipeline

        return build_folder_pipeline(
            source,
            batch_size=batch_size,
            threads=self.loading.threads,
            device_id=self.loading.device.index or 0 if self._on_gpu else None,
            prefetch=self.loading.prefetch,
            side=self.crop.side,
            interpolation=self.crop.interpolation,
            exif=self.crop.exif,
            encoded=self._feed.encoded is not None,
            largest=(int(self.index.heights.max(initial=0)), int(self.index.widths.max(initial=0))),
        )

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; `prefetch` more are being decoded meanwhile, on a CPU two more.

        A thread of its own does the host's part, if that has one, which would keep the caller waiting while all cores
        decode. It ends with the iterator. A stream that is open ends when the next one is asked for.
        """
        if (last := self._open()) is not None:
            last.close()
        stream = self._made(requests)
        if self._resizer is not None:
            stream = in_background(stream)
        self._open = weakref.ref(stream)
        return stream

    def _made(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        if self._feed.waiting:  # the last caller left half-way: what it did not take is still in the pipeline
            self._pipeline = self._build(self.loading.largest_batch, self._feed.next_inputs)
        self._feed.begin(requests)
        self._pipeline.reset()
        self._pipeline.schedule_run()  # the first call schedules `prefetch` batches
        resizing: deque[tuple[Request, Result]] = deque()
        for decoded in self._decoded():
            resizing.append(decoded)
            if self._resizer is None or len(resizing) > 1:  # one batch is being resized while the caller works
                yield self._batch(*resizing.popleft())
        while resizing:
            yield self._batch(*resizing.popleft())

    def _decoded(self) -> Iterator[tuple[Request, Result]]:
        """The batches of the stream as soon as they are decoded; an error is raised by the result of the last one."""
        waiting = self._feed.waiting
        while True:
            while waiting and not len(waiting[0].request.ids):
                yield waiting.popleft().request, self._nothing
            try:
                (output,) = self._pipeline.share_outputs(cuda_stream=self._stream())
            except StopIteration:
                return
            except RuntimeError:
                if self._on_gpu:
                    torch.cuda.synchronize(self.loading.device)  # raises what the device itself has to report
                try:
                    self._restart()
                except DataError as error:
                    yield waiting[0].request, _raising(error)
                    return
                continue
            task = waiting.popleft()
            result = self._result(output, task)
            self._pipeline.release_outputs()
            self._pipeline.schedule_run()
            yield task.request, result

    def _result(self, output: Any, task: Task) -> Result:
        """The images of a batch that DALI has done its part of; no copy: the executor hands over the memory."""
        if self._resizer is None:
            images = torch.from_dlpack(output.as_tensor())
            return lambda: images
        decoded = [np.asarray(output[i]) for i in range(len(output))]
        after = drawn(self.loading.transform, self.crop.seed, task.request)
        return self._resizer.start(decoded, task.windows, self.crop.side, after).result

    def _stream(self) -> Any:
        """The stream that is to see finished images; None where they are made on the host."""
        return torch.cuda.current_stream(self.loading.device) if self._on_gpu else None

    def _nothing(self) -> Tensor:
        side = self.crop.side
        return torch.empty((0, side, side, 3), dtype=torch.uint8, device=self.loading.device if self._on_gpu else None)

    def _batch(self, request: Request, result: Result) -> Batch:
        ids, draws, device = torch.from_numpy(request.ids), torch.from_numpy(request.draws()), self.loading.device
        images = result() if self._on_gpu else to_device(result(), device)
        return Batch(images, to_device(self.labels[ids], device), ids, draws)

    def _restart(self) -> None:
        """Finds what is damaged in the batch that failed and goes on from it with a new pipeline."""
        feed, failed = self._feed, self._feed.waiting[0].request
        reasons = {sample: self._reason(failed.keep(slice(i, i + 1))) for i, sample in enumerate(failed.ids.tolist())}
        damaged = {sample: reason for sample, reason in reasons.items() if reason is not None}
        if len(damaged) == len(reasons) > 1:
            sample, reason = next(iter(damaged.items()))
            raise DataError(
                f"none of the {len(damaged)} images of a batch can be decoded; first {feed.name(sample)}: {reason}"
            )
        if not damaged:
            raise DataError(
                f"decoding a batch of {len(failed.ids)} images failed, yet each of them decodes alone (first: "
                f"{feed.name(int(failed.ids[0]))}); is the machine out of memory? lower train.batch_size"
            )
        self.skipped.update(damaged)
        feed.again()
        self._pipeline = self._build(self.loading.largest_batch, feed.next_inputs)
        self._pipeline.schedule_run()

    def _reason(self, request: Request) -> str | None:
        """Why the one image of `request` cannot be decoded, or None when it can."""
        inputs = iter([self._feed.inputs(Task(request, self.crop.windows(request, self.index)))])
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


def _raising(error: DataError) -> Result:
    def result() -> Tensor:
        raise error

    return result

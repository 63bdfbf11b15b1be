"""Batches of encoded image files, decoded, cropped and resized by DALI while the caller works on earlier ones."""

import re
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data.crop_windows import Windows
from fastaug.data.index import Index
from fastaug.data.loaders.base import Crop, Loading, to_device
from fastaug.data.loaders.cpu_resize import Resizer
from fastaug.data.loaders.dali_feed import Encoded, Feed, Inputs, Task
from fastaug.data.loaders.host_transform import drawn
from fastaug.data.loaders.prefetch import in_background
from fastaug.data.sampler import Request
from fastaug.errors import DataError

Result = Callable[[], Tensor]  # waits for a batch's images, or raises what became of them
_SAMPLE = re.compile(r"sample #(\d+)")  # in DALI's message: the place of an image in its batch


class DaliLoader:
    """The loader of encoded image files by DALI: decodes, crops and resizes them ahead of the caller.

    On a GPU DALI's graph does all of it. On a CPU, and for a GPU where a host transform comes before the upload (not
    yet measured), it decodes the windows, and as many threads of a Resizer resize them and apply the transform.
    Where DALI fails at an image, it gives up the whole batch and the pipeline with it. The loader then has that image
    decoded by Pillow, or leaves it out, and starts again from the same batch with a new pipeline.
    """

    def __init__(self, index: Index, crop: Crop, loading: Loading, encoded: Encoded | None = None):
        """`encoded` gives the bytes of an image file by id; None: they are read from the paths of the index."""
        self.index, self.crop, self.loading = index, crop, loading
        self.labels = torch.from_numpy(index.labels)
        self._on_gpu = loading.device.type == "cuda" and loading.transform is None  # where images are made
        self._feed = Feed(index, crop, encoded, inputs=5 if self._on_gpu else 3, threads=loading.threads)
        self.skipped = self._feed.skipped
        self._resizer = Resizer(loading.threads, crop.interpolation)  # on a GPU for what Pillow decodes
        self._pipeline = self._build(loading.largest_batch, self._feed.next_inputs)
        self._open: Callable[[], Generator[Batch, None, None] | None] = lambda: None  # the stream that is not over

    def _build(self, batch_size: int, source: Callable[[], Inputs]) -> Any:
        from fastaug.data.dali_graphs.folder import build_folder_pipeline

        return build_folder_pipeline(
            source,
            batch_size=batch_size,
            threads=self.loading.threads,
            device_id=self.loading.device.index or 0 if self._on_gpu else None,
            prefetch=self.loading.prefetch,
            side=self.crop.side,
            interpolation=self.crop.interpolation,
            exif=self.crop.exif,
            largest=(int(self.index.heights.max(initial=0)), int(self.index.widths.max(initial=0))),
        )

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; `prefetch` more are being decoded meanwhile, on a CPU two more.

        The files of one more are being read. A thread of its own does the host's part, if that has one, which would
        keep the caller waiting while all cores decode. All threads end with the iterator. A stream that is open ends
        when the next one is asked for.
        """
        if (last := self._open()) is not None:
            last.close()
        stream = self._made(requests)
        if not self._on_gpu:
            stream = in_background(stream)
        self._open = weakref.ref(stream)
        return stream

    def _made(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        if self._feed.waiting:  # the last caller left half-way: what it did not take is still in the pipeline
            self._pipeline = self._build(self.loading.largest_batch, self._feed.next_inputs)
        self._feed.begin(requests)
        try:
            self._pipeline.reset()
            self._pipeline.schedule_run()  # the first call schedules `prefetch` batches
            resizing: deque[tuple[Request, Result]] = deque()
            for decoded in self._decoded():
                resizing.append(decoded)
                if self._on_gpu or len(resizing) > 1:  # one batch is being resized while the caller works
                    yield self._batch(*resizing.popleft())
            while resizing:
                yield self._batch(*resizing.popleft())
        finally:
            self._feed.end()

    def _decoded(self) -> Iterator[tuple[Request, Result]]:
        """The batches of the stream as soon as they are decoded; an error is raised by the result of the last one."""
        waiting = self._feed.waiting
        while True:
            try:
                (output,) = self._pipeline.share_outputs(cuda_stream=self._stream())
            except StopIteration:
                return
            except RuntimeError as error:
                if self._on_gpu:
                    torch.cuda.synchronize(self.loading.device)  # raises what the device itself has to report
                try:
                    self._restart(str(error))
                except DataError as fatal:
                    yield waiting[0].request, _raising(fatal)
                    return
                continue
            task = waiting.popleft()
            result = self._result(output, task)
            self._pipeline.release_outputs()
            self._pipeline.schedule_run()
            yield task.request, result

    def _result(self, output: Any, task: Task) -> Result:
        """The images of a batch that DALI has done its part of; no copy: the executor hands over the memory."""
        if self._on_gpu:
            return partial(self._on_device, output.as_tensor(), task)
        rows = iter(range(len(output)))
        decoded = [np.asarray(output[next(rows)]) if x.ndim == 1 else x for x in task.sources]
        after = drawn(self.loading, self.crop.seed, task.request)
        return self._resizer.start(decoded, task.windows, self.crop.side, after).result

    def _on_device(self, made: Any, task: Task) -> Tensor:
        """The images of a batch whose larger part, uint8 [n, S, S, 3], DALI made on the device."""
        rows = task.for_dali()
        if len(rows) == len(task.sources) > 0:
            return torch.from_dlpack(made)
        side, device = self.crop.side, self.loading.device
        images = torch.empty((len(task.sources), side, side, 3), dtype=torch.uint8, device=device)
        if rows:
            images[rows] = torch.from_dlpack(made)
        if others := [row for row, source in enumerate(task.sources) if source.ndim == 3]:
            cuts, windows = [task.sources[row] for row in others], Windows(*(values[others] for values in task.windows))
            images[others] = to_device(self._resizer.batch(cuts, windows, side), device)
        return images

    def _stream(self) -> Any:
        """The stream that is to see finished images; None where they are made on the host."""
        return torch.cuda.current_stream(self.loading.device) if self._on_gpu else None

    def _batch(self, request: Request, result: Result) -> Batch:
        ids, draws, device = torch.from_numpy(request.ids), torch.from_numpy(request.draws()), self.loading.device
        images = result() if self._on_gpu else to_device(result(), device)
        return Batch(images, to_device(self.labels[ids], device), ids, draws)

    # ---- when DALI fails ----

    def _restart(self, text: str) -> None:
        """Takes the images at which DALI failed out of its hands and goes on from there with a new pipeline."""
        feed = self._feed
        number, rows = self._failed(text)
        feed.waiting[number] = feed.without_dali(feed.waiting[number], rows)
        feed.again()
        self._pipeline = self._build(self.loading.largest_batch, feed.next_inputs)
        self._pipeline.schedule_run()

    def _failed(self, text: str) -> tuple[int, list[int]]:
        """The batch under way, and all rows in it, at which DALI fails, after it did with this message."""
        named = [int(place) for place in _SAMPLE.findall(text)[:1]]
        for number, task in enumerate(self._feed.waiting):  # the first one, unless DALI fails ahead of its turn
            rows = task.for_dali()
            first = self._culprits(task, [rows[place] for place in named if place < len(rows)])
            if bad := first + self._culprits(task, [row for row in rows if row not in first]):
                return number, bad
        raise DataError(
            f"decoding a batch failed, yet its parts can be decoded ({_first_line(text)}); is the machine out of "
            "memory? lower train.batch_size"
        )

    def _culprits(self, task: Task, rows: list[int]) -> list[int]:
        """Those of `rows` at which DALI fails; by halves, so that few of them take few pipelines."""
        if not rows or self._decodes(task, rows):
            return []
        if len(rows) == 1:
            return rows
        half = len(rows) // 2
        return self._culprits(task, rows[:half]) + self._culprits(task, rows[half:])

    def _decodes(self, task: Task, rows: list[int]) -> bool:
        inputs = iter([self._feed.inputs(task, rows)])
        pipeline = self._build(len(rows), lambda: next(inputs))  # DALI takes functions, not built-in methods
        pipeline.schedule_run()
        try:
            pipeline.share_outputs()
        except RuntimeError:
            return False
        pipeline.release_outputs()
        return True


def _first_line(text: str) -> str:
    """What an error of DALI says behind its own traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return lines[after][:300]


def _raising(error: DataError) -> Result:
    def result() -> Tensor:
        raise error

    return result

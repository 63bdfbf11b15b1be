"""The feed of a DALI graph: requests as files in memory and windows, without damaged images.

A file is read and looked at before DALI gets it, for a file that DALI refuses can end the process. What DALI may not be
given is decoded here.
"""

import itertools
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastaug.data.crop_windows import Windows
from fastaug.data.image_files import (
    Bytes,
    DamagedImageError,
    Extent,
    Pixels,
    decode_by_pillow,
    extent_for_pillow,
    file_for_dali,
    read_image_file,
)
from fastaug.data.image_headers import Status
from fastaug.data.index import Index
from fastaug.data.loaders.base import Crop
from fastaug.data.sampler import Request

Encoded = Callable[[int], Bytes]  # id -> bytes of the image file, [length]
Inputs = tuple[Any, ...]  # what the DALI graph is fed for one batch, see dali_graphs/folder.py
Source = Bytes | Pixels  # an image file for DALI [length], or the decoded window [h, w, 3]
Result = TypeVar("Result")

_BLANK = np.frombuffer(b"P6 1 1 255 \0\0\0", dtype=np.uint8)


class _Opened(NamedTuple):
    data: Bytes
    extent: Extent
    for_dali: bool


class Task(NamedTuple):
    """A batch on its way: what is left of its request, its crop windows, and the file or the window of each image."""

    request: Request
    windows: Windows
    sources: list[Source]

    def for_dali(self) -> list[int]:
        """The rows that DALI decodes."""
        return [row for row, source in enumerate(self.sources) if source.ndim == 1]

    def of(self, sources: list[Source | None]) -> "Task":
        """The task with these files and windows, without the images that have none."""
        rows = [row for row, source in enumerate(sources) if source is not None]
        windows = Windows(*(values[rows] for values in self.windows))
        kept = self.request.keep(np.array(rows, dtype=np.int64))
        return Task(kept, windows, [source for source in sources if source is not None])


class Feed:
    """Feeds a DALI graph with requests; knows which batches are under way and which images are damaged.

    Knows nothing of the loader: a graph keeps its source alive, and the loader must end when it is dropped.
    """

    def __init__(self, index: Index, crop: Crop, encoded: Encoded | None, inputs: int, threads: int) -> None:
        """`encoded` gives the bytes of an image, None: they are read from its path. The graph takes `inputs` inputs."""
        self.index, self.crop, self._encoded, self._inputs, self.threads = index, crop, encoded, inputs, threads
        self._top = os.path.join(os.fsencode(index.root), b"")
        self.skipped: dict[int, str] = {}  # id -> why it was left out
        self._changed: set[int] = set()  # ids whose file was changed since it was indexed
        self.refused: set[int] = set()  # ids that DALI fails to decode
        self.waiting: deque[Task] = deque()  # given to the graph and not yet delivered
        self._source: Iterator[Task] = iter(())

    def begin(self, requests: Iterable[Request]) -> None:
        """Starts a new stream of requests; files are read one batch ahead."""
        self._source = self._read_ahead(requests)
        self.waiting.clear()

    def end(self) -> None:
        """Ends the reading of files."""
        self._source = iter(())

    def again(self) -> None:
        """Has a new graph take the batches under way once more."""
        self._source = itertools.chain(list(self.waiting), self._source)
        self.waiting.clear()

    def next_inputs(self) -> Inputs:
        """What the graph is fed for the next request; StopIteration behind the last."""
        task = next(self._source)
        self.waiting.append(task)
        return self.inputs(task, task.for_dali())

    def inputs(self, task: Task, rows: list[int]) -> Inputs:
        """The files and windows of some rows as the graph takes them; a blank pixel in place of none."""
        if not rows:
            one, none = np.ones((1, 2), np.int32), np.zeros((1, 2), np.int32)
            return ([_BLANK], none, one, one.astype(np.float32) * self.crop.side, none)[: self._inputs]
        w = task.windows
        anchor, extent = w.window[rows, :2].astype(np.int32), w.window[rows, 2:].astype(np.int32)
        files = [task.sources[row] for row in rows]
        every = (files, anchor, extent, w.size[rows].astype(np.float32), w.offset[rows].astype(np.int32))
        return every[: self._inputs]

    def without_dali(self, task: Task, rows: list[int]) -> Task:
        """The task after DALI failed at some images: decoded by Pillow, or left out where that fails too."""
        ids = task.request.ids.tolist()
        self.refused |= (failed := {ids[row] for row in rows})
        return task.of([self._cut(task, i) if id in failed else task.sources[i] for i, id in enumerate(ids)])

    def name(self, sample: int) -> str:
        """The path of image `sample` as text for messages."""
        return self.index.path(sample).decode(sys.getfilesystemencoding(), "backslashreplace")

    # ---- reading, in threads of its own ----

    def _read_ahead(self, requests: Iterable[Request]) -> Iterator[Task]:
        with ThreadPoolExecutor(self.threads, "fastaug-read") as pool:
            reading: deque[tuple[Request, Callable[[], list[_Opened | None]]]] = deque()
            for request in requests:
                good = self._without_damaged(request)
                reading.append((good, _on_threads(pool, self.threads, self._opened, good.ids.tolist())))
                if len(reading) > 1:
                    yield self._task(*reading.popleft(), pool)
            while reading:
                yield self._task(*reading.popleft(), pool)

    def _without_damaged(self, request: Request) -> Request:
        good = self.index.status[request.ids] != Status.DAMAGED
        for sample in request.ids[~good].tolist():
            self.skipped.setdefault(sample, self.index.reasons[sample])
        return request.keep(good)

    def _task(self, request: Request, read: "Callable[[], list[_Opened | None]]", pool: ThreadPoolExecutor) -> Task:
        opened = read()
        request = request.keep(np.array([one is not None for one in opened], dtype=bool))
        found = [one for one in opened if one is not None]
        extents = np.array([one.extent for one in found], dtype=np.int64).reshape(-1, 2)
        task = Task(request, self.crop.windows(request, extents[:, 0], extents[:, 1]), [one.data for one in found])
        by_pillow = [row for row, one in enumerate(found) if not one.for_dali]
        if not by_pillow:
            return task
        cuts = _on_threads(pool, self.threads, lambda row: self._cut(task, row), by_pillow)()
        sources: list[Source | None] = [*task.sources]
        for row, cut in zip(by_pillow, cuts, strict=True):
            sources[row] = cut
        return task.of(sources)

    def _opened(self, sample: int) -> "_Opened | None":
        """The file of an image and its size; None where it is damaged."""
        if sample in self.skipped:
            return None
        try:
            data = self._encoded(sample) if self._encoded else self._read(sample)
            if sample not in self.refused and (fit := file_for_dali(data, self.crop.exif, self.crop.background)):
                return _Opened(*fit, for_dali=True)
            return _Opened(data, extent_for_pillow(data, self.crop.exif), for_dali=False)
        except DamagedImageError as error:
            self.skipped[sample] = str(error)
            return None

    def _cut(self, task: Task, row: int) -> Pixels | None:
        """The window of an image by Pillow; None where it is damaged. A copy: the whole image may be large."""
        top, left, height, width = task.windows.window[row].tolist()
        try:
            image = decode_by_pillow(task.sources[row], self.crop.exif, self.crop.background)
            window = image[top : top + height, left : left + width].copy()
            if window.shape == (height, width, 3):
                return window
            raise DamagedImageError("truncated or corrupt: of another size than its header says")
        except DamagedImageError as error:
            self.skipped[int(task.request.ids[row])] = str(error)
            return None

    def _read(self, sample: int) -> Bytes:
        data, stamp = read_image_file(self._top + self.index.paths[sample])
        indexed = self.index.stamps
        if indexed is not None and stamp != tuple(indexed[sample, :2].tolist()) and sample not in self._changed:
            self._changed.add(sample)
            warnings.warn(f"{self.name(sample)} was changed since it was indexed; read as it is now", stacklevel=1)
        return data


def _on_threads(
    pool: ThreadPoolExecutor, threads: int, function: Callable[[int], Result], items: list[int]
) -> Callable[[], list[Result]]:
    """Starts function(item) of every item, in as many pieces of work as there are threads; gives what waits for it."""
    parts = [pool.submit(lambda part: [function(i) for i in part], items[first::threads]) for first in range(threads)]

    def finished() -> list[Result]:
        out: list[Any] = [None] * len(items)
        for first, part in enumerate(parts):
            out[first::threads] = part.result()
        return out

    return finished

"""The feed of a DALI graph: requests as files in memory and windows, without damaged images.

A file is read and looked at before DALI gets it, for a file that DALI refuses can end the process. What DALI may not be
given is decoded here.
"""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fastaug.data.crop_windows import Windows
from fastaug.data.image_files import (
    Bytes,
    DamagedImageError,
    Extent,
    Pixels,
    decode_by_pillow,
    extent_for_dali,
    read_image_file,
)
from fastaug.data.index import Index, Status
from fastaug.data.loaders.base import Crop
from fastaug.data.loaders.prefetch import ahead
from fastaug.data.sampler import Request

Encoded = Callable[[int], Bytes]  # id -> bytes of the image file, [length]
Inputs = tuple[Any, ...]  # what the DALI graph is fed for one batch, see pipelines/folder.py
Source = Bytes | Pixels  # an image file for DALI [length], or its pixels [H, W, 3]
Result = TypeVar("Result")

_BLANK = np.frombuffer(b"P6 1 1 255 \0\0\0", dtype=np.uint8)


class Task(NamedTuple):
    """A batch on its way: what is left of its request, its crop windows, and the file or the pixels of each image."""

    request: Request
    windows: Windows
    sources: list[Source]

    def for_dali(self) -> list[int]:
        """The rows that DALI decodes."""
        return [row for row, source in enumerate(self.sources) if source.ndim == 1]

    def keep(self, rows: list[int]) -> "Task":
        """The task for a part of its images."""
        windows = Windows(*(values[rows] for values in self.windows))
        return Task(self.request.keep(np.array(rows, dtype=np.int64)), windows, [self.sources[row] for row in rows])

    def cut(self, row: int) -> Pixels:
        """The window of an image that is decoded already."""
        top, left, height, width = self.windows.window[row].tolist()
        return self.sources[row][top : top + height, left : left + width]


class Feed:
    """Feeds a DALI graph with requests; knows which batches are under way and which images are damaged.

    Knows nothing of the loader: a graph keeps its source alive, and the loader must end when it is dropped.
    """

    def __init__(self, index: Index, crop: Crop, encoded: Encoded | None, inputs: int, threads: int) -> None:
        """`encoded` gives the bytes of an image, None: they are read from its path. The graph takes `inputs` inputs."""
        self.index, self.crop, self._encoded, self._inputs, self.threads = index, crop, encoded, inputs, threads
        self.skipped: dict[int, str] = {}  # id -> why it was left out
        self.changed: dict[int, str] = {}  # id -> what is new about a file that was changed since it was indexed
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

    def without_dali(self, task: Task, row: int, reason: str) -> Task:
        """The task after DALI failed at an image: decoded by Pillow, or left out for `reason` if that fails too."""
        ids = task.request.ids.tolist()
        sample = ids[row]
        self.refused.add(sample)
        try:
            pixels = decode_by_pillow(task.sources[row], self.crop.exif)
        except DamagedImageError:
            self.skipped[sample] = reason
            return task.keep([other for other, id in enumerate(ids) if id != sample])
        sources = [pixels if id == sample else source for id, source in zip(ids, task.sources, strict=True)]
        return task._replace(sources=sources)

    def name(self, sample: int) -> str:
        """The path of image `sample` as text for messages."""
        return self.index.path(sample).decode(sys.getfilesystemencoding(), "backslashreplace")

    # ---- reading, in threads of its own ----

    def _read_ahead(self, requests: Iterable[Request]) -> Iterator[Task]:
        with ThreadPoolExecutor(self.threads, "fastaug-read") as pool:
            yield from ahead(lambda request: self._task(request, pool), requests, depth=1)

    def _task(self, request: Request, pool: ThreadPoolExecutor) -> Task:
        good = self.index.status[request.ids] != Status.DAMAGED
        for sample in request.ids[~good].tolist():
            self.skipped.setdefault(sample, self.index.reasons[sample])
        request = request.keep(good)
        found = _on_threads(pool, self.threads, self._opened, request.ids.tolist())
        kept = np.array([one is not None for one in found], dtype=bool)
        request, opened = request.keep(kept), [one for one in found if one is not None]
        extents = np.array([extent for _, extent in opened], dtype=np.int64).reshape(-1, 2)
        windows = self.crop.windows(request, extents[:, 0], extents[:, 1])
        return Task(request, windows, [source for source, _ in opened])

    def _opened(self, sample: int) -> tuple[Source, Extent] | None:
        """The file of an image, or its pixels where DALI may not have it, and its size; None where it is damaged."""
        if sample in self.skipped:
            return None
        try:
            data = self._encoded(sample) if self._encoded else self._read(sample)
            if sample not in self.refused and (extent := extent_for_dali(data, self.crop.exif)):
                return data, extent
            pixels = decode_by_pillow(data, self.crop.exif)
        except DamagedImageError as error:
            self.skipped[sample] = str(error)
            return None
        return pixels, pixels.shape[:2]

    def _read(self, sample: int) -> Bytes:
        data, stamp = read_image_file(self.index.path(sample))
        if self.index.stamps is not None and stamp != tuple(self.index.stamps[sample, :2].tolist()):
            self.changed[sample] = f"{stamp[0]:,} bytes"
        return data


def _on_threads(
    pool: ThreadPoolExecutor, threads: int, function: Callable[[int], Result], ids: list[int]
) -> list[Result]:
    """function(id) of every id, in order, in as many pieces of work as there are threads."""
    parts = [pool.submit(lambda part: [function(id) for id in part], ids[first::threads]) for first in range(threads)]
    out: list[Any] = [None] * len(ids)
    for first, part in enumerate(parts):
        out[first::threads] = part.result()
    return out

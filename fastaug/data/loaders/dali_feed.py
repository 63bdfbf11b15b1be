"""The feed of a DALI graph: requests without their damaged images, as paths (or bytes) and windows."""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.crop_windows import Windows
from fastaug.data.index import Index, Status
from fastaug.data.loaders.base import Crop
from fastaug.data.sampler import Request

Encoded = Callable[[int], npt.NDArray[np.uint8]]  # id -> bytes of the image file, [length]
Inputs = tuple[Any, ...]  # what the DALI graph is fed for one batch, see pipelines/folder.py


class Task(NamedTuple):
    """A batch given to the graph and not yet delivered: what is left of its request, and its crop windows."""

    request: Request
    windows: Windows


class Feed:
    """Feeds a DALI graph with requests; knows which batches are under way and which images are damaged.

    Knows nothing of the loader: a graph keeps its source alive, and the loader must end when it is dropped.
    """

    def __init__(self, index: Index, crop: Crop, encoded: Encoded | None, inputs: int) -> None:
        """`encoded` gives the bytes of an image, None: they are read from its path. The graph takes `inputs` inputs."""
        self.index, self.crop, self.encoded, self._inputs = index, crop, encoded, inputs
        self.skipped: dict[int, str] = {}  # id -> why it was left out
        self.waiting: deque[Task] = deque()  # given to the graph and not yet delivered
        self._source: Iterator[Request] = iter(())

    def begin(self, requests: Iterable[Request]) -> None:
        """Starts a new stream of requests."""
        self._source = iter(requests)
        self.waiting.clear()

    def again(self) -> None:
        """Has a new graph take the batches under way once more."""
        self._source = itertools.chain([task.request for task in self.waiting], self._source)
        self.waiting.clear()

    def next_inputs(self) -> Inputs:
        """What the graph is fed for the next request that has an image to decode; StopIteration behind the last."""
        for request in self._source:
            request = self._without_damaged(request)
            self.waiting.append(Task(request, self.crop.windows(request, self.index)))
            if len(request.ids):
                return self.inputs(self.waiting[-1])
        raise StopIteration

    def inputs(self, task: Task) -> Inputs:
        """Paths or bytes, and windows, as the graph takes them."""
        ids, w = task.request.ids.tolist(), task.windows
        files = [self.encoded(i) for i in ids] if self.encoded else [self._path(i) for i in ids]
        anchor, extent = w.window[:, :2].astype(np.int32), w.window[:, 2:].astype(np.int32)
        return (files, anchor, extent, w.size.astype(np.float32), w.offset.astype(np.int32))[: self._inputs]

    def _path(self, sample: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self.index.path(sample), dtype=np.uint8)

    def _without_damaged(self, request: Request) -> Request:
        damaged = self.index.status[request.ids] == Status.DAMAGED
        for sample in request.ids[damaged].tolist():
            self.skipped.setdefault(sample, self.index.reasons[sample])
        if not self.skipped:
            return request
        return request.keep(np.array([sample not in self.skipped for sample in request.ids.tolist()], dtype=bool))

    def name(self, sample: int) -> str:
        """The path of image `sample` as text for messages."""
        return self.index.path(sample).decode(sys.getfilesystemencoding(), "backslashreplace")

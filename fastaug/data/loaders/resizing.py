"""Batches whose side changes with the epoch (progressive resizing): one loader after the other."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from fastaug.batch import Batch
from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import Request


class ResizingLoader:
    """The loader of progressive resizing: that of the size which an epoch has.

    `side(epoch)`: pixels a side. `loader(side)` makes the loader of that size; only one lives at a time, so that memory
    is that of the largest. Windows do not depend on the size: an image is cut as at any other.
    """

    def __init__(self, loader: Callable[[int], Loader], side: Callable[[int], int]) -> None:
        self._build, self._side_of = loader, side
        self._loader: Loader | None = None
        self._side = 0
        self.skipped: dict[int, str] = {}

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; nothing is prefetched across a change of size."""
        for side, group in groupby(requests, lambda request: self._side_of(request.epoch)):
            for batch in self._of(side).batches(group):
                self.skipped.update(self._of(side).skipped)
                yield batch
            self.skipped.update(self._of(side).skipped)

    def _of(self, side: int) -> Loader:
        if self._loader is None or side != self._side:
            self._loader = None  # before the next one takes its memory
            self._loader, self._side = self._build(side), side
        return self._loader

"""Prefetching iterators: work done in threads while the caller is busy, in order; the threads end with the iterator."""

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int, threads: int = 1
) -> Generator[Result, None, None]:
    """Prefetching map: function(item) of every item, in order; up to `depth` more are prepared while the caller works.

    `items` is read in the caller's thread. An error of `function` is raised where its result would have come. Closing
    the iterator waits for the calls that are running and drops the rest.
    """
    source, finalizing = iter(items), sys.is_finalizing
    pool = ThreadPoolExecutor(threads, "fastaug-ahead")
    try:
        waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, depth))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        if not finalizing():  # an iterator left to the end of Python: its threads have ended, modules are gone
            pool.shutdown(cancel_futures=True)


def in_background(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Prefetching iterator over `items`: the next one is made in a thread while the caller works on the one before."""
    end = object()
    for item in ahead(lambda _: next(items, end), repeat(None), depth=1):
        if item is end:
            return
        yield item  # type: ignore[misc]

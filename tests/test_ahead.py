import threading
import time
from collections.abc import Iterator

import pytest

from fastaug.ahead import ahead


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastaug-ahead")]


@pytest.mark.parametrize(("depth", "threads"), [(1, 1), (2, 1), (3, 4), (50, 3)])
def test_results_come_in_order(depth: int, threads: int) -> None:
    def slow(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(ahead(slow, range(20), depth, threads)) == [i * i for i in range(20)]
    assert list(ahead(slow, [], depth, threads)) == []
    assert not own_threads()


def test_works_ahead_while_the_caller_is_busy_but_no_further_than_depth() -> None:
    begun: list[int] = []
    stream = ahead(lambda i: begun.append(i), iter(range(100)), 3)
    next(stream)
    deadline = time.monotonic() + 10
    while len(begun) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert begun == [0, 1, 2, 3]
    stream.close()  # type: ignore[attr-defined]


def test_threads_end_with_an_iterator_left_half_way() -> None:
    stream = ahead(lambda i: i, range(100), 4, 2)
    next(stream)
    assert own_threads()
    del stream
    assert not own_threads()


def test_an_error_comes_in_its_place_and_ends_the_threads() -> None:
    stream = ahead(lambda i: 1 // (3 - i), range(10), 5, 2)
    assert [next(stream) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(stream)
    assert not own_threads()


def test_an_error_of_the_items_reaches_the_caller() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        list(ahead(lambda i: i, items(), 1))
    assert not own_threads()

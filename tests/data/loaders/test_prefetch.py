import threading
import time
from collections.abc import Iterator

import pytest

from fastaug.data.loaders.prefetch import ahead, in_background


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
    stream.close()


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


def test_in_background_the_next_item_is_made_while_the_caller_works() -> None:
    made: list[tuple[int, str]] = []

    def items() -> Iterator[int]:
        for i in range(5):
            made.append((i, threading.current_thread().name))
            yield i

    stream = in_background(items())
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert [i for i, _ in made] == [0, 1]
    assert {name.rpartition("_")[0] for _, name in made} == {"fastaug-ahead"}
    assert list(stream) == [1, 2, 3, 4]
    assert not own_threads()


def test_in_background_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    stream = in_background(items())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="gone"):
        next(stream)
    assert not own_threads()

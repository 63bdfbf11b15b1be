"""The time that training waits for batches, as metrics.jsonl's wait_share."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fastaug.training.build import Progress
from fastaug.training.timing import Awaited, Clock


def slow(batches: int, seconds: float) -> Iterator[Any]:
    """Batches of 0, 1, 2, ... images."""
    for number in range(batches):
        time.sleep(seconds)
        yield SimpleNamespace(ids=range(number))


def test_waiting_is_counted_and_nothing_else() -> None:
    batches = Awaited(slow(3, 0.02))
    for number, batch in enumerate(batches):
        assert len(batch.ids) == number
        time.sleep(0.02)
    assert 0.06 <= batches.seconds < 0.12
    assert batches.images == 0 + 1 + 2


def test_the_share_is_that_since_the_last_call() -> None:
    progress = Progress()
    batches = Awaited(slow(4, 0.03))
    clock = Clock(progress, batches)
    next(batches)
    progress.images_seen = 8
    time.sleep(0.03)
    speed, share = clock.lap()
    assert speed == pytest.approx(8 / progress.train_seconds)
    assert 0.2 < share < 0.8
    time.sleep(0.03)
    progress.images_seen = 16
    assert clock.lap()[1] == 0

"""Draws of libraries that use global generators, made a function of (key, id)."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from fastaug.seeding import IdArray, Key, Stream, words

T = TypeVar("T")
_LOCK = threading.Lock()  # the generators belong to the process: one thread seeds and draws at a time


def draw_each(draw: Callable[[], T], key: Key, ids: IdArray, number: int = 0) -> list[T]:
    """draw() once per id, every global generator seeded by (key, id, number); their states are put back.

    Only drawing comes through here, never work on pixels. No other thread may draw from `random` or
    `np.random` meanwhile; fastaug itself never does.
    """
    with _LOCK, _restored():
        return [_seeded(draw, int(seed)) for seed in words(key.on(Stream.POLICY), ids, number + 1)[:, number]]


def _seeded(draw: Callable[[], T], seed: int) -> T:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  (timm draws from this generator)
    torch.default_generator.manual_seed(seed >> 1)  # not torch.manual_seed: that seeds the devices too
    return draw()


@contextmanager
def _restored() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])

"""Draws of timm and torchvision, which use global generators, made a function of (key, id).

torchvision draws from torch's default generator and timm from `random` and `numpy.random`. All three belong to the
process: seeding them in a loader's thread would change what other threads draw, dropout masks among them. Here each
library draws from generators of ours instead, seeded anew for every image, and gets the numbers that the global ones
would give under the same seeds.
"""

import random
import threading
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from fastaug.seeding import IdArray, Key, Stream, words

T = TypeVar("T")


def seeds(key: Key, ids: IdArray, number: int = 0) -> list[int]:
    """A 64-bit seed for each id; `number` tells apart the draws of several policies for one image."""
    found: list[int] = words(key.on(Stream.POLICY), ids, number + 1)[:, number].tolist()
    return found


class OwnGenerator(TorchFunctionMode):
    """Context in which torch's random functions draw from `generator`, in the thread that entered it and no other."""

    DRAWING = frozenset({torch.rand, torch.randint, torch.randperm, torch.Tensor.uniform_})

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        return func(*args, **(given | {"generator": self.generator} if func in self.DRAWING else given))


def draw_by_torch(draw: Callable[[], T], key: Key, ids: IdArray, number: int = 0) -> list[T]:
    """draw() once per id, torch's random functions seeded by (key, id, number); for draws, not for work on pixels."""
    found = []
    with OwnGenerator() as own:
        for seed in seeds(key, ids, number):
            own.generator.manual_seed(seed >> 1)
            found.append(draw())
    return found


class SeededModule:
    """A second copy of a module that draws from `random` and `numpy.random`, with generators of its own for both.

    The copy is nobody else's: what others draw through the module is left as it is.
    """

    def __init__(self, name: str) -> None:
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        self.module: ModuleType = module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.random = random.Random()
        self.numpy = np.random.RandomState()  # the kind that timm draws from
        vars(self.module).update(random=self.random, np=SimpleNamespace(**vars(np) | {"random": self.numpy}))
        self._lock = threading.Lock()  # one thread seeds and draws at a time

    def draw_each(self, draw: Callable[[], T], key: Key, ids: IdArray) -> list[T]:
        """draw() once per id, both generators seeded by (key, id)."""
        with self._lock:
            return [self._seeded(draw, seed) for seed in seeds(key, ids)]

    def _seeded(self, draw: Callable[[], T], seed: int) -> T:
        self.random.seed(seed)
        self.numpy.seed(seed & 0xFFFFFFFF)
        return draw()

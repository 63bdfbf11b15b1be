"""What every loader and training loop is asked for."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

Batch = tuple[Any, Any, Any]  # images uint8 [N,H,W,3] or [N,3,H,W], labels [N], ids [N] or None; tensors or arrays
Stream = Iterator[Batch]
Steps = dict[str, Callable[[], int]]  # mode -> does one batch of work and returns its images

EPOCH = 50_000  # images: loaders that stop between epochs get their files this often, as a large set would have them


@dataclass(frozen=True)
class Job:
    """Contract U: uint8 batches [batch, side, side, 3] of antialiased random resized crops, no flip, and labels."""

    source: str  # folder, pattern or file in the form the loader reads
    batch: int
    threads: int  # decoding threads or worker processes
    side: int = 224  # pixels
    scale: tuple[float, float] = (0.08, 1.0)  # share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    once: bool = False  # every image once, then end; else endless
    model: str = ""  # training loops: timm's name

    def whole(self, ratio: float) -> "Job":
        """The same way through the loader with a window that is always the whole image of this ratio, each once."""
        return replace(self, scale=(1.0, 1.0), ratio=(ratio, ratio), once=True)

    def repeats(self, images: int) -> int:
        """How often a loader lists its files, so that an epoch is as long as a large set's."""
        return 1 if self.once else -(-EPOCH // images)

    def epochs(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`: one pass, or passes without end."""
        yield from loader
        while not self.once:
            yield from loader

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Job":
        values: dict[str, Any] = json.loads(text)
        return Job(**values | {name: tuple(values[name]) for name in ("scale", "ratio")})

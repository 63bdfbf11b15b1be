from collections.abc import Callable
from pathlib import Path

import pytest

from fastaug.console import Console
from fastaug.data.index import Index, load_index
from fastaug.data.shards.layout import Settings, ShardIndex, open_shards
from fastaug.data.shards.writer import make_shards

MakeShards = Callable[..., ShardIndex]


def settings(format: str = "raw", short_side: int = 64, shard_size: int | None = 10, **keys: object) -> Settings:
    values = {"quality": None if format == "raw" else 90, "exif": "ignore"} | keys
    return Settings(format, short_side, shard_size=shard_size, **values)  # type: ignore[arg-type]


@pytest.fixture
def index(jpeg_folder: Callable[..., Path]) -> Index:
    """24 training and 24 test images of two classes, 40 to 120 pixels a side."""
    return load_index(jpeg_folder(classes=2, images=12, splits=("train", "val")), threads=1)


@pytest.fixture
def make(tmp_path: Path) -> MakeShards:
    """make(index, format, short_side, ...): its shards in tmp_path/FORMAT, or in the folder named by `out`."""

    def made(index: Index, *given: object, out: str | None = None, workers: int = 2, **keys: object) -> ShardIndex:
        wanted = settings(*given, **keys)  # type: ignore[arg-type]
        folder = tmp_path / (out or wanted.format)
        make_shards(index, folder, wanted, workers=workers, console=Console(False))
        return open_shards(folder)

    return made

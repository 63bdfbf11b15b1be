"""What loaders give from shards, beside what they give from the files that the shards were made of."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastaug.data.index import Index, load_index
from fastaug.data.loaders.base import Crop, HostTransform, Loader, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.resident import ResidentLoader
from fastaug.data.loaders.shards import RawShardLoader, shard_loader
from fastaug.data.sampler import Order, Request
from fastaug.data.shards.layout import ShardIndex
from fastaug.errors import DataError

from ..conftest import MakeShards

SIDE, CPU = 32, torch.device("cpu")


def loader_of(
    index: Index,
    kind: str = "rrc",
    *,
    threads: int = 2,
    seed: int = 0,
    prefetch: int = 2,
    transform: HostTransform | None = None,
    **keys: Any,
) -> DaliLoader | RawShardLoader:
    crop, loading = Crop(kind, SIDE, seed, **keys), Loading(CPU, 16, threads, prefetch, transform)
    return shard_loader(index, crop, loading) if isinstance(index, ShardIndex) else DaliLoader(index, crop, loading)


def requests(count: int = 48, size: int = 8, epoch: int = 0) -> list[Request]:
    return [Request(epoch, np.arange(i, min(i + size, count))) for i in range(0, count, size)]


def by_id(loader: Loader, wanted: list[Request]) -> dict[int, torch.Tensor]:
    images: dict[int, torch.Tensor] = {}
    for batch in loader.batches(wanted):
        images |= dict(zip(batch.ids.tolist(), batch.images.clone(), strict=True))
    return images


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def difference(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[i].float() - other[i].float()).abs().mean().item() for i in one)


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("fastaug")}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rrc", "center", "whole"])
def test_raw_images_that_fit_train_and_test_as_their_files(
    jpeg_folder: Callable[..., Path], make: MakeShards, kind: str, interpolation: str
) -> None:
    index = load_index(jpeg_folder(images=24, kind="png"), threads=1)
    raw = make(index, "raw", 500)
    keys = {"interpolation": interpolation}
    for epoch in (0, 3):
        wanted = requests(epoch=epoch)
        assert same(by_id(loader_of(raw, kind, **keys), wanted), by_id(loader_of(index, kind, **keys), wanted))


def test_copied_jpegs_train_as_their_files(index: Index, make: MakeShards) -> None:
    shards = make(index, "jpeg", 500)
    assert same(by_id(loader_of(shards), requests()), by_id(loader_of(index), requests()))


@pytest.mark.parametrize(("format", "limit"), [("raw", 3.0), ("jpeg", 6.0)])
def test_smaller_images_are_evaluated_nearly_as_their_files(
    index: Index, make: MakeShards, format: str, limit: float
) -> None:
    shards = make(index, format, SIDE * 8 // 7)
    assert (np.minimum(shards.heights, shards.widths) == SIDE * 8 // 7).all()
    assert (
        difference(by_id(loader_of(shards, "center"), requests()), by_id(loader_of(index, "center"), requests()))
        < limit
    )


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_batches_follow_the_order_with_labels_and_draws(index: Index, make: MakeShards, format: str) -> None:
    shards = make(index, format)
    order = Order(np.arange(24), seed=3, batch_size=10, repeats=2)
    wanted = list(order.requests(0, 4))
    for batch, request in zip(loader_of(shards).batches(wanted), wanted, strict=True):
        assert batch.ids.tolist() == request.ids.tolist()
        assert batch.draws.tolist() == request.draws().tolist()
        assert batch.labels.tolist() == index.labels[request.ids].tolist()
        assert batch.images.shape == (len(request.ids), SIDE, SIDE, 3)
        assert (batch.images.dtype, batch.labels.dtype, batch.ids.dtype) == (torch.uint8, torch.int64, torch.int64)


@pytest.mark.parametrize(("size", "threads", "prefetch"), [(16, 1, 2), (8, 4, 1), (5, 2, 4), (1, 1, 2)])
def test_pixels_do_not_depend_on_batch_threads_or_prefetch(
    index: Index, make: MakeShards, size: int, threads: int, prefetch: int
) -> None:
    shards = make(index)
    first = by_id(loader_of(shards), requests())
    assert same(by_id(loader_of(shards, threads=threads, prefetch=prefetch), requests(size=size)), first)


def test_pixels_depend_on_seed_and_epoch_and_evaluation_on_neither(index: Index, make: MakeShards) -> None:
    shards = make(index)
    first = by_id(loader_of(shards), requests())
    for other in (by_id(loader_of(shards, seed=1), requests()), by_id(loader_of(shards), requests(epoch=1))):
        assert sum(torch.equal(first[i], other[i]) for i in first) <= 3
    assert same(
        by_id(loader_of(shards, "center", seed=1), requests(epoch=5)), by_id(loader_of(shards, "center"), requests())
    )


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stream_left_half_way_ends_its_threads_and_does_not_leak_into_the_next(
    index: Index, make: MakeShards, prefetch: int, taken: int
) -> None:
    loader, before = loader_of(make(index), prefetch=prefetch), own_threads()
    stream = loader.batches(requests(epoch=1))
    for _ in range(taken):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    ended = time.monotonic() + 10
    while own_threads() - before and time.monotonic() < ended:
        time.sleep(0.001)
    assert not own_threads() - before
    assert same(by_id(loader, requests()), by_id(loader_of(loader.index), requests()))  # type: ignore[attr-defined]


def test_a_batch_held_by_the_caller_is_not_overwritten(index: Index, make: MakeShards) -> None:
    loader = loader_of(make(index))
    held = [(b.images, b.images.clone()) for epoch in range(4) for b in loader.batches(requests(epoch=epoch))]
    assert all(torch.equal(images, copy) for images, copy in held)
    held[0][0].zero_()
    assert all(torch.equal(images, copy) for images, copy in held[1:])


def test_reading_ahead_is_bounded_by_prefetch(index: Index, make: MakeShards) -> None:
    asked: list[int] = []

    def counted() -> Iterator[Request]:
        for request in requests(size=2):
            asked.append(len(asked))
            yield request

    stream = loader_of(make(index), prefetch=3).batches(counted())
    next(stream)
    assert len(asked) == 4


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_damaged_images_are_dropped_and_counted(index: Index, make: MakeShards, format: str) -> None:
    for sample in (11, *range(16, 24)):
        file = Path(index.path(sample).decode())
        file.write_bytes(file.read_bytes()[:200])
    shards = make(index, format)
    loader = loader_of(shards)
    batches = list(loader.batches(requests()))
    assert [len(batch.ids) for batch in batches] == [8, 7, 0, 8, 8, 8]
    assert batches[1].ids.tolist() == [8, 9, 10, 12, 13, 14, 15]
    assert batches[1].labels.tolist() == index.labels[batches[1].ids.numpy()].tolist()
    assert batches[2].images.shape == (0, SIDE, SIDE, 3)
    assert loader.skipped == shards.reasons
    assert sorted(loader.skipped) == [11, *range(16, 24)]


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_a_shard_cut_while_in_use_is_an_error_that_reaches_the_caller(
    index: Index, make: MakeShards, format: str
) -> None:
    shards = make(index, format)
    loader = loader_of(shards)
    assert len(by_id(loader, requests())) == 48
    os.truncate(shards.root / "test-00001.tar", 1024)
    with pytest.raises(DataError, match=r"test-00001\.tar cannot be read at byte \d+: cut while in use"):
        by_id(loader, requests())
    if format == "raw":
        assert not [thread for thread in own_threads() if "ahead" in thread.name]
    assert by_id(loader, requests(count=24)).keys() == set(range(24))


def test_resident_holds_raw_shards(index: Index, make: MakeShards) -> None:
    shards = make(index)
    resident = ResidentLoader(loader_of(shards, "whole"), np.arange(48), Loading(CPU))
    assert same(by_id(resident, requests()), by_id(loader_of(shards, "whole"), requests()))

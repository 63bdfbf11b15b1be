import functools
import gc
import operator
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fastaug.batch import Batch
from fastaug.data.image_files import decode_by_pillow
from fastaug.data.image_headers import Status
from fastaug.data.index import Index, load_index
from fastaug.data.loaders.base import Crop, HostTransform, Loader, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.dali_feed import Task
from fastaug.data.loaders.resident import ResidentLoader
from fastaug.data.loaders.synthetic import SyntheticLoader
from fastaug.data.sampler import Order, Request

pytestmark = pytest.mark.filterwarnings("ignore:.* was changed since it was indexed")

SIDE, CPU = 32, torch.device("cpu")
DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_bytes(b"not an image at all"),
    "deleted": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "stray": lambda file: file.write_bytes(file.read_bytes()[:200]),
}


@pytest.fixture
def index(jpeg_folder: Callable[..., Path]) -> Index:
    """32 images of two classes."""
    return load_index(jpeg_folder(classes=2, images=16), threads=1)


def loader_of(
    index: Index,
    kind: str = "rrc",
    *,
    threads: int = 1,
    largest: int = 16,
    seed: int = 0,
    side: int = SIDE,
    prefetch: int = 2,
    encoded: Callable[[int], np.ndarray] | None = None,
    transform: HostTransform | None = None,
    **keys: Any,
) -> DaliLoader:
    return DaliLoader(
        index, Crop(kind, side, seed, **keys), Loading(CPU, largest, threads, prefetch, transform), encoded
    )


def requests(count: int = 32, size: int = 8, epoch: int = 0) -> list[Request]:
    return [Request(epoch, np.arange(i, min(i + size, count))) for i in range(0, count, size)]


def by_id(loader: Loader, wanted: list[Request]) -> dict[int, torch.Tensor]:
    images: dict[int, torch.Tensor] = {}
    for batch in loader.batches(wanted):
        images |= dict(zip(batch.ids.tolist(), batch.images.clone(), strict=True))
    return images


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


def file_of(index: Index, sample: int) -> Path:
    return Path(os.fsdecode(index.path(sample)))


def spoil(index: Index, samples: dict[int, str]) -> None:
    for sample, kind in samples.items():
        DAMAGE[kind](file_of(index, sample))


@pytest.mark.parametrize("kind", ["rrc", "center", "whole"])
def test_a_batch_holds_what_was_asked_for(index: Index, kind: str) -> None:
    wanted = [Request(0, np.array([3, 30, 4])), Request(1, np.array([17])), Request(1, np.arange(16))]
    batches = list(loader_of(index, kind).batches(wanted))
    for batch, request in zip(batches, wanted, strict=True):
        assert batch.ids.tolist() == request.ids.tolist()
        assert batch.labels.tolist() == index.labels[request.ids].tolist()
        assert batch.images.shape == (len(request.ids), SIDE, SIDE, 3)
        assert (batch.images.dtype, batch.labels.dtype, batch.ids.dtype) == (torch.uint8, torch.int64, torch.int64)


def test_whole_images_are_those_of_pillow_and_in_their_places(index: Index) -> None:
    images = by_id(loader_of(index, "whole"), requests()[::-1])
    for sample in range(32):
        with Image.open(file_of(index, sample)) as picture:
            reference = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=float)
        assert np.abs(images[sample].numpy() - reference).mean() < 3


@pytest.mark.parametrize(("size", "threads", "prefetch"), [(16, 1, 2), (8, 4, 2), (16, 4, 1), (5, 2, 4), (1, 1, 2)])
def test_windows_and_pixels_do_not_depend_on_batch_threads_or_prefetch(
    index: Index, size: int, threads: int, prefetch: int
) -> None:
    first = by_id(loader_of(index), requests())
    assert same(by_id(loader_of(index, threads=threads, prefetch=prefetch), requests(size=size)), first)


def test_windows_depend_on_seed_and_epoch(index: Index) -> None:
    first = by_id(loader_of(index), requests())
    for other in (by_id(loader_of(index, seed=1), requests()), by_id(loader_of(index), requests(epoch=1))):
        assert sum(torch.equal(first[i], other[i]) for i in first) <= 2


def test_evaluation_windows_do_not_depend_on_seed_or_epoch(index: Index) -> None:
    first = by_id(loader_of(index, "center"), requests())
    assert same(by_id(loader_of(index, "center", seed=1), requests(epoch=5)), first)


@pytest.mark.parametrize("prefetch", [1, 2, 4])
def test_streams_one_after_the_other(index: Index, prefetch: int) -> None:
    loader = loader_of(index, prefetch=prefetch)
    first = by_id(loader, requests())
    assert [batch.ids.tolist() for batch in loader.batches([])] == []
    assert same(by_id(loader, requests()[::-1]), first)
    assert same(by_id(loader, requests(count=6)), {i: first[i] for i in range(6)})


@pytest.mark.parametrize("prefetch", [1, 2, 4])
@pytest.mark.parametrize("taken", [0, 1, 3, 4])
def test_a_stream_left_half_way_does_not_leak_into_the_next(index: Index, prefetch: int, taken: int) -> None:
    loader = loader_of(index, prefetch=prefetch)
    stream = loader.batches(requests(epoch=1))
    for _ in range(taken):
        next(stream)
    stream.close()
    assert same(by_id(loader, requests()), by_id(loader_of(index), requests()))


def test_asking_for_a_stream_ends_the_one_that_is_open(index: Index) -> None:
    loader = loader_of(index)
    before = loader.batches(requests(epoch=1))
    next(before)
    assert same(by_id(loader, requests()), by_id(loader_of(index), requests()))
    assert next(before, None) is None


def test_a_batch_held_by_the_caller_is_not_overwritten(index: Index) -> None:
    held: list[tuple[Batch, torch.Tensor]] = []
    loader = loader_of(index)
    for epoch in range(4):
        held += [(batch, batch.images.clone()) for batch in loader.batches(requests(epoch=epoch))]
    assert all(torch.equal(batch.images, copy) for batch, copy in held)
    del loader
    assert all(torch.equal(batch.images, copy) for batch, copy in held)


def test_reading_ahead_is_bounded_by_prefetch(index: Index) -> None:
    asked: list[int] = []

    def counted() -> object:
        for request in requests(size=2):
            asked.append(len(asked))
            yield request

    stream = loader_of(index, prefetch=3).batches(counted())  # type: ignore[arg-type]
    next(stream)
    assert len(asked) <= 6  # one asked for, three being decoded, one resized, one read


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("kind", DAMAGE)
def test_an_image_damaged_after_indexing_is_dropped_and_the_rest_intact(index: Index, kind: str, prefetch: int) -> None:
    first = by_id(loader_of(index), requests())
    loader = loader_of(index, prefetch=prefetch)
    spoil(index, {11: kind})
    batches = list(loader.batches(requests()))
    assert [batch.ids.tolist() for batch in batches] == [
        list(range(8)), [8, 9, 10, 12, 13, 14, 15], list(range(16, 24)), list(range(24, 32)),
    ]  # fmt: skip
    for batch in batches:
        assert batch.labels.tolist() == index.labels[batch.ids.numpy()].tolist()
        assert all(torch.equal(image, first[i]) for i, image in zip(batch.ids.tolist(), batch.images, strict=True))
    assert list(loader.skipped) == [11]
    assert loader.skipped[11].strip()
    # Known now: the next stream meets it without a failure of the pipeline.
    assert by_id(loader, requests()).keys() == first.keys() - {11}
    assert list(loader.skipped) == [11]


@pytest.mark.parametrize("prefetch", [1, 2, 4])
def test_damage_in_several_batches_in_flight(index: Index, prefetch: int) -> None:
    first = by_id(loader_of(index), requests())
    damaged = {0: "truncated", 7: "text", 8: "deleted", 15: "empty", 31: "truncated"}
    spoil(index, damaged)
    loader = loader_of(index, prefetch=prefetch)
    assert same(by_id(loader, requests()), {i: first[i] for i in first if i not in damaged})
    assert sorted(loader.skipped) == sorted(damaged)


@pytest.mark.parametrize("damaged", [[0], [7], [3, 4], [*range(8)]])
def test_images_that_dali_does_not_name_are_found_by_halves(index: Index, damaged: list[int]) -> None:
    spoil(index, dict.fromkeys(damaged, "truncated"))
    loader, ids = loader_of(index), np.arange(8)
    windows = loader.crop.windows(Request(0, ids), index.heights[ids], index.widths[ids])
    task = Task(Request(0, ids), windows, [np.fromfile(file_of(index, i), dtype=np.uint8) for i in range(8)])
    assert loader._culprits(task, [*range(8)]) == damaged
    assert loader._culprits(task, [i for i in range(8) if i not in damaged]) == []


def test_an_image_asked_for_alone_and_damaged_gives_an_empty_batch(index: Index) -> None:
    spoil(index, {5: "truncated"})
    loader = loader_of(index)
    batches = list(loader.batches([Request(0, np.array([i])) for i in (4, 5, 6, 5)]))
    assert [batch.ids.tolist() for batch in batches] == [[4], [], [6], []]
    assert batches[1].images.shape == (0, SIDE, SIDE, 3)
    assert batches[1].labels.shape == (0,)


def test_images_damaged_in_the_index_are_not_even_tried(jpeg_folder: Callable[..., Path]) -> None:
    root = jpeg_folder(classes=2, images=16)
    files = sorted(root.rglob("*.jpg"))
    good = load_index(root, threads=1)
    first = by_id(loader_of(good), requests())
    damaged = [0, 8, 9, 10, 11, 12, 13, 14, 15, 31]  # the second batch whole
    for i in damaged:
        DAMAGE["truncated"](files[i])
    from fastaug.data.index import cache_file

    cache_file(root, "ignore").unlink()  # edited in place: the index must be made anew
    index = load_index(root, threads=1)
    assert np.flatnonzero(index.status == Status.DAMAGED).tolist() == damaged
    loader = loader_of(index)
    batches = list(loader.batches(requests()))
    assert [len(batch.ids) for batch in batches] == [7, 0, 8, 7]
    assert functools.reduce(operator.iadd, (batch.ids.tolist() for batch in batches), []) == [
        i for i in range(32) if i not in damaged
    ]
    assert all(torch.equal(b.images[j], first[int(i)]) for b in batches for j, i in enumerate(b.ids))
    assert loader.skipped == {i: index.reasons[i] for i in damaged}
    last = list(loader.batches([Request(0, np.arange(8, 16))] * 3))  # nothing but damaged ones: still one batch each
    assert [len(batch.ids) for batch in last] == [0, 0, 0]


def test_a_batch_without_one_good_image_is_empty_and_the_stream_goes_on(index: Index) -> None:
    spoil(index, dict.fromkeys(range(8, 16), "truncated"))
    loader = loader_of(index)
    assert [len(batch.ids) for batch in loader.batches(requests())] == [8, 0, 8, 8]
    assert sorted(loader.skipped) == list(range(8, 16))


@pytest.mark.parametrize("size", [(4, 4), (500, 400)])
def test_a_file_saved_again_at_another_size_is_used_as_it_is_and_named(index: Index, size: tuple[int, int]) -> None:
    loader, first = loader_of(index), by_id(loader_of(index), requests())
    Image.new("RGB", size, (200, 10, 60)).save(file_of(index, 11))
    with pytest.warns(UserWarning, match=r"class0/011\.jpg was changed since it was indexed; read as it is now"):
        images = by_id(loader, requests())
    assert loader.skipped == {}
    assert (images.pop(11).float() - torch.tensor([200.0, 10.0, 60.0])).abs().max() < 4
    assert same(images, {i: image for i, image in first.items() if i != 11})


def test_what_pillow_decodes_joins_the_images_that_a_device_made(index: Index) -> None:
    """The GPU's way of putting a batch together, on the CPU: rows of DALI, rows of Pillow, none of DALI at all."""
    loader = loader_of(index, "whole")
    ids = np.arange(8)
    windows = loader.crop.windows(Request(0, ids), index.heights[ids], index.widths[ids])
    wanted = torch.stack([*by_id(loader, requests(8)).values()])
    files = [np.fromfile(file_of(index, i), dtype=np.uint8) for i in range(8)]
    for host in ([], [0, 3, 7], [*range(8)]):
        sources = [decode_by_pillow(file, "ignore") if i in host else file for i, file in enumerate(files)]
        task = Task(Request(0, ids), windows, sources)
        rows = task.for_dali()
        made = wanted[rows] if rows else wanted[:1] * 0  # the blank that stands in for none
        assert (loader._on_device(made, task).int() - wanted.int()).abs().max() <= 2, host


@pytest.mark.parametrize("name", ["with space.jpg", "ünïcode.jpg", "per%cent#.jpg", b"not-utf8-\xff.jpg"])
def test_any_file_name_can_be_read(tmp_path: Path, photos: list[np.ndarray], name: str | bytes) -> None:
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        Image.fromarray(photos[0][:50, :50]).save(tmp_path / "set" / label / "0.jpg")
    os.rename(tmp_path / "set" / "a" / "0.jpg", os.path.join(os.fsencode(tmp_path / "set" / "a"), os.fsencode(name)))
    (batch,) = loader_of(load_index(tmp_path / "set", threads=1)).batches([Request(0, np.arange(2))])
    assert batch.ids.tolist() == [0, 1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_images_are_those_of_torchvision(jpeg_folder: Callable[..., Path], interpolation: str) -> None:
    """Whole image resized, then cut, though only what the cut needs is decoded."""
    index = load_index(jpeg_folder(classes=2, images=8, sizes=(90, 220)), threads=1)
    images = by_id(loader_of(index, "center", side=64, interpolation=interpolation), requests(16))
    mode = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[interpolation]
    for sample, image in images.items():
        with Image.open(file_of(index, sample)) as picture:
            whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        resized = F.resize(whole, [int(64 / 0.875)], interpolation=mode, antialias=True)
        reference = F.center_crop(resized, [64, 64]).permute(1, 2, 0)
        assert (image.float() - reference.float()).abs().mean() < 1.5


def test_files_in_memory_give_the_batches_of_the_folder(index: Index) -> None:
    files = [np.fromfile(file_of(index, i), dtype=np.uint8) for i in range(32)]
    first = by_id(loader_of(index), requests())
    assert same(by_id(loader_of(index, encoded=files.__getitem__, threads=2), requests(size=5)), first)
    files[9], files[20] = files[9][: len(files[9]) // 2], files[20][:0]
    loader = loader_of(index, encoded=files.__getitem__)
    assert same(by_id(loader, requests()), {i: first[i] for i in first if i not in (9, 20)})
    assert sorted(loader.skipped) == [9, 20]


def test_an_image_repeated_in_a_batch_and_damaged_is_dropped_everywhere(index: Index) -> None:
    spoil(index, {3: "truncated"})
    copies = np.arange(8) // 4
    (batch,) = loader_of(index).batches([Request(0, np.tile(np.arange(2, 6), 2), copies)])
    assert batch.ids.tolist() == [2, 4, 5, 2, 4, 5]
    assert not torch.equal(batch.images[0], batch.images[3])  # two crops of one image


@pytest.mark.parametrize("taken", [0, 2, 4])
def test_threads_end_with_the_loader_even_when_a_stream_is_left_half_way(index: Index, taken: int) -> None:
    gc.collect()
    gc.disable()  # they end because nothing refers to the loader, not because the collector came by
    try:
        before = len(os.listdir("/proc/self/task"))
        loader = loader_of(index, threads=2)
        stream = loader.batches(requests())
        batches = [next(stream) for _ in range(taken)]
        assert len(os.listdir("/proc/self/task")) > before
        del stream, loader
        deadline = time.monotonic() + 10
        while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(os.listdir("/proc/self/task")) <= before
        assert all(batch.images.float().std() > 0 for batch in batches)
    finally:
        gc.enable()


def test_an_interrupt_ends_a_stream_and_forks_of_it_end_too(index: Index) -> None:
    program = """
import itertools, multiprocessing, os, signal, sys, threading
import numpy as np, torch
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.dali_feed import Task
from fastaug.data.index import load_index
from fastaug.data.sampler import Request
index = load_index(sys.argv[1], threads=1)
loader = DaliLoader(index, Crop("rrc", 32), Loading(torch.device("cpu"), largest_batch=8, threads=2))
stream = loader.batches(Request(epoch, np.arange(8)) for epoch in itertools.count())
next(stream)
child = multiprocessing.get_context("fork").Process(target=int)
child.start()
child.join(20)
print("fork", child.exitcode, flush=True)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for batch in stream:
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(index.root)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.stdout.split("\n")[:2], ended.returncode) == (["fork 0", "interrupted"], 0), ended.stderr


def test_an_order_read_through_a_loader_gives_each_image_once(index: Index) -> None:
    order = Order(np.arange(32), seed=3, batch_size=6, world=2, rank=1, accumulate=1)
    images = by_id(loader_of(index), list(order.requests(0, order.steps_per_epoch)))
    other = by_id(loader_of(index), list(Order(**{**vars(order), "rank": 0}).requests(0, order.steps_per_epoch)))
    assert images.keys() | other.keys() == set(range(32))
    assert not images.keys() & other.keys()
    whole = by_id(loader_of(index), list(Order(np.arange(32), 3, 6).requests(0, 6)))
    assert same(images | other, whole)


@pytest.mark.parametrize("kind", ["whole", "center"])
def test_resident_gives_the_pixels_of_dali(index: Index, kind: str) -> None:
    wanted = [Request(0, np.array([9, 2, 30, 9])), Request(1, np.arange(32))]
    resident = ResidentLoader(loader_of(index, kind, largest=5), np.arange(32), Loading(CPU))
    dali = loader_of(index, kind, largest=32)
    for one, other in zip(resident.batches(wanted), dali.batches(wanted), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.ids, other.ids)


def test_resident_drops_and_counts_damaged_images_and_holds_a_subset(index: Index) -> None:
    spoil(index, {11: "truncated", 20: "text"})
    held = np.arange(10, 22)
    resident = ResidentLoader(loader_of(index, "whole", largest=5), held, Loading(CPU))
    assert sorted(resident.skipped) == [11, 20]
    (batch,) = resident.batches([Request(0, held[::-1].copy())])
    assert batch.ids.tolist() == [i for i in range(21, 9, -1) if i not in (11, 20)]
    assert batch.labels.tolist() == index.labels[batch.ids.numpy()].tolist()
    assert same(by_id(resident, [Request(0, held)]), by_id(loader_of(index, "whole"), [Request(0, held)]))


def test_synthetic_images_are_fixed_by_id_and_seed() -> None:
    one, again, other = (SyntheticLoader(10, Crop("rrc", 8, seed), Loading(CPU)) for seed in (0, 0, 1))
    wanted = [Request(0, np.array([3, 127, 199])), Request(4, np.array([127]))]
    first, second = one.batches(wanted)
    assert first.labels.tolist() == [3, 7, 9]
    assert first.images.shape == (3, 8, 8, 3)
    assert first.images.dtype == torch.uint8
    assert torch.equal(first.images[1], second.images[0])
    assert not torch.equal(first.images[0], first.images[1])
    assert same(by_id(again, wanted), by_id(one, wanted))
    assert not torch.equal(next(iter(other.batches(wanted))).images, first.images)
    assert one.skipped == {}

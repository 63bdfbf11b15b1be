"""A host transform in every loader: which images it meets, with which draws, in which threads."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastaug.batch import Batch
from fastaug.data.index import Index, load_index
from fastaug.data.loaders.base import Crop, HostTransform, Loader, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.resident import ResidentLoader
from fastaug.data.loaders.shards import shard_loader
from fastaug.data.loaders.synthetic import SyntheticLoader
from fastaug.data.sampler import Request
from fastaug.seeding import Key, Stream, integers

from ..conftest import MakeShards

SIDE, CPU, SEED = 32, torch.device("cpu"), 5
KINDS = ("files", "jpeg", "raw", "resident", "synthetic")
MakeLoader = Callable[..., Loader]


class Brighter:
    """Adds a number drawn by (key, id) to an image; every fourth image is left as it is."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def sample(self, key: Key, ids: npt.ArrayLike) -> list[int]:
        drawn: list[int] = integers(key, ids, 4)[:, 0].tolist()
        return [(50 * number) for number in drawn]

    def apply_one(self, image: npt.NDArray[np.uint8], value: int) -> npt.NDArray[np.uint8]:
        assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
        self.threads.add(threading.current_thread().name)
        return image + np.uint8(value) if value else image


@pytest.fixture
def make_loader(jpeg_folder: Callable[..., Path], make: MakeShards) -> MakeLoader:
    """make_loader(kind, transform, threads, prefetch): a loader of 48 images of two classes."""
    index: Index = load_index(jpeg_folder(classes=2, images=12, splits=("train", "val")), threads=1)
    shards = {kind: make(index, kind) for kind in ("jpeg", "raw")}

    def build(kind: str, transform: HostTransform | None = None, threads: int = 2, prefetch: int = 2) -> Loader:
        crop = Crop("center" if kind == "resident" else "rrc", SIDE, SEED)
        loading = Loading(CPU, 16, threads, prefetch, transform)
        if kind == "synthetic":
            return SyntheticLoader(2, crop, loading)
        if kind == "resident":
            return ResidentLoader(DaliLoader(index, crop, Loading(CPU, 16)), np.arange(48), loading)
        return shard_loader(shards[kind], crop, loading) if kind in shards else DaliLoader(index, crop, loading)

    return build


def requests(size: int = 8, epoch: int = 1) -> list[Request]:
    return [Request(epoch, np.arange(i, min(i + size, 48))) for i in range(0, 48, size)]


def by_id(loader: Loader, wanted: list[Request]) -> dict[int, torch.Tensor]:
    images: dict[int, torch.Tensor] = {}
    for batch in loader.batches(wanted):
        images |= dict(zip(batch.ids.tolist(), batch.images.clone(), strict=True))
    return images


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[i], other[i]) for i in one)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_changed_as_its_own_draw_says_and_nothing_else(make_loader: MakeLoader, kind: str) -> None:
    transform = Brighter()
    plain, got = list(make_loader(kind).batches(requests())), list(make_loader(kind, transform).batches(requests()))
    changed = 0
    for before, after in zip(plain, got, strict=True):
        values = transform.sample(Key(SEED, 1, Stream.POLICY), before.draws)
        for image, result, value in zip(before.images, after.images, values, strict=True):
            assert torch.equal(result, image + value)
            changed += value > 0
        for field in ("labels", "ids", "draws"):
            assert torch.equal(getattr(before, field), getattr(after, field))
        assert after.images.is_contiguous()
    assert 24 < changed < 48


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "threads", "prefetch"),
    [(5, 4, 1), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((16, 1, 2), (1, 2, 4), (8, 3, 3)))],
)
def test_pixels_do_not_depend_on_batch_threads_or_prefetch(
    make_loader: MakeLoader, kind: str, size: int, threads: int, prefetch: int
) -> None:
    first = by_id(make_loader(kind, Brighter()), requests())
    assert same(by_id(make_loader(kind, Brighter(), threads, prefetch), requests(size)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_the_epoch_and_the_copy_of_an_image_change_its_draw(make_loader: MakeLoader, kind: str) -> None:
    loader = make_loader(kind, Brighter())
    copies = [Request(1, np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4))]
    plain, (batch,) = next(iter(make_loader(kind).batches(copies))), loader.batches(copies)
    shifts = (batch.images - plain.images)[:, 0, 0, 0].reshape(4, 4)
    assert (shifts != shifts[:, :1]).any(1).sum() > 2
    assert not same(by_id(loader, requests(epoch=2)), by_id(loader, requests(epoch=1)))


class Meeting(Brighter):
    """Goes on as soon as a second thread is at work on an image too."""

    def __init__(self) -> None:
        super().__init__()
        self.met = threading.Event()

    def apply_one(self, image: npt.NDArray[np.uint8], value: int) -> npt.NDArray[np.uint8]:
        result = super().apply_one(image, value)
        if len(self.threads) > 1:
            self.met.set()
        self.met.wait(20)
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_in_several_threads_and_not_in_the_caller_s(make_loader: MakeLoader, kind: str) -> None:
    transform = Meeting()
    assert len(by_id(make_loader(kind, transform, threads=2, prefetch=2), requests())) == 48
    assert transform.met.is_set()
    assert threading.current_thread().name not in transform.threads


class Failing(Brighter):
    def apply_one(self, image: npt.NDArray[np.uint8], value: int) -> npt.NDArray[np.uint8]:
        return image + np.uint8(50 // (value - 150))


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_wrong_in_it_reaches_the_caller(make_loader: MakeLoader, kind: str) -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        list(make_loader(kind, Failing()).batches(requests()))


def test_a_resident_set_stays_as_it_was_decoded(make_loader: MakeLoader) -> None:
    loader = make_loader("resident", Brighter())
    assert isinstance(loader, ResidentLoader)
    before = loader.images.clone()
    first = by_id(loader, requests())
    assert torch.equal(loader.images, before)
    assert same(by_id(loader, requests()), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_without_images_gives_an_empty_batch(make_loader: MakeLoader, kind: str) -> None:
    wanted = [Request(0, np.arange(0)), Request(0, np.arange(3))]
    sizes: Iterator[Batch] = make_loader(kind, Brighter()).batches(wanted)
    assert [batch.images.shape for batch in sizes] == [(0, SIDE, SIDE, 3), (3, SIDE, SIDE, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_beside_its_copies_and_early_epochs_are_left_alone(make_loader: MakeLoader, kind: str) -> None:
    loader = make_loader(kind, Brighter())
    loader.loading = replace(loader.loading, spare=True, first_epoch=1)  # type: ignore[attr-defined]
    copies = Request(1, np.tile(np.arange(5), 3), np.repeat(np.arange(3), 5))
    plain, (got,) = next(iter(make_loader(kind).batches([copies]))), loader.batches([copies])
    changed = (got.images != plain.images).flatten(1).any(1).view(3, 5).sum(1)
    assert changed[0] == 0
    assert changed[1:].min() > 0
    early = copies._replace(epoch=0)
    assert torch.equal(
        next(iter(loader.batches([early]))).images, next(iter(make_loader(kind).batches([early]))).images
    )

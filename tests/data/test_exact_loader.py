"""The exact loader on a real loader of made-up pixels: epochs, states, what is refused."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastaug.batch import Batch
from fastaug.data.exact_loader import STATE, ExactLoader
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loaders.synthetic import SyntheticLoader
from fastaug.data.sampler import FileOrder, Order
from fastaug.errors import FastaugError, PeerError, RecipeError

IMAGES, SIZE = 50, 8
CPU = torch.device("cpu")


def made(
    world: int = 1, rank: int = 0, order: type[Order] = Order, transform: Any = None, **options: Any
) -> ExactLoader:
    drop = options.pop("drop_last", False)
    taken = order(np.arange(IMAGES), seed=3, batch_size=SIZE, world=world, rank=rank, drop_last=drop)
    source = SyntheticLoader(5, Crop("whole", 4), Loading(CPU, transform=transform))
    return ExactLoader(taken, source, {"set": "a", "batch_size": SIZE, "seed": 3}, **options)


def take(loader: ExactLoader, count: int) -> list[list[int]]:
    """Ids of `count` batches of one iterator, which is then left."""
    return [batch.ids.tolist() for _, batch in zip(range(count), loader, strict=False)]


def epoch_ids(loader: ExactLoader) -> list[int]:
    return [i for batch in loader for i in batch.ids.tolist()]


def test_every_iteration_is_the_next_epoch_and_holds_every_image_once():
    loader = made()
    found = [epoch_ids(loader) for _ in range(3)]
    assert found == [loader.order.epoch_ids(epoch).tolist() for epoch in range(3)]
    assert found[0] != found[1]
    assert len(loader) == len(list(loader)) == 7
    assert loader.epoch == 4


def test_a_state_is_exact_to_the_image_and_counts_no_prefetched_batch():
    whole, loader, other = made(), made(), made()
    wanted = [batch.ids.tolist() for _ in range(2) for batch in whole]
    for number, batch in enumerate(loader, start=1):
        assert batch.ids.tolist() == wanted[number - 1]
        other.load_state_dict(loader.state_dict())
        assert [b.ids.tolist() for b in other] == wanted[number:7] or number == 7
    assert loader.state_dict()["images"] == IMAGES
    assert [b.ids.tolist() for b in loader] == wanted[7:]


def test_an_iteration_that_is_left_is_followed_by_the_next_epoch():
    loader = made()
    first = take(loader, 3)
    assert loader.state_dict()["images"] == 3 * SIZE
    assert epoch_ids(loader) == loader.order.epoch_ids(1).tolist()
    loader.set_epoch(0)
    assert take(loader, 3) == first
    loader.set_epoch(0)  # again from its first image: it was left
    assert take(loader, 3) == first


def test_setting_the_epoch_of_a_state_does_not_rewind_it():
    loader = made()
    with pytest.raises(ValueError, match=r"epoch 1\.5: must be a whole number"):
        loader.set_epoch(1.5)
    loader.set_epoch(4)
    take(loader, 2)
    state = loader.state_dict()
    other = made()
    other.load_state_dict(state)
    other.set_epoch(other.epoch)
    assert other.epoch == 4
    assert epoch_ids(other) == loader.order.epoch_ids(4)[2 * SIZE :].tolist()


def test_iterators_that_are_begun_and_not_used_change_nothing():
    """As Lightning does."""
    loader = made()
    take(loader, 2)
    state = loader.state_dict()
    loader.load_state_dict(state)
    iter(loader), iter(loader)
    assert epoch_ids(loader) == loader.order.epoch_ids(0)[2 * SIZE :].tolist()


def test_two_iterations_at_once_are_refused():
    loader = made()
    first = iter(loader)
    next(first)
    assert len(list(loader)) == 7
    with pytest.raises(FastaugError, match="this iterator is over: another one was begun"):
        next(first)


def global_batches(loaders: list[ExactLoader], count: int) -> list[list[int]]:
    """Ids of `count` batches as all processes together get them."""
    taken = [take(loader, count) for loader in loaders]
    return [[i for part in parts for i in part] for parts in zip(*taken, strict=True)]


def test_global_batches_do_not_depend_on_the_number_of_processes():
    """Saved and resumed in the middle of an epoch: by one process, then two, then three."""
    alone = made()
    wanted = [batch.ids.tolist() for batch in alone]
    found, state = [], made().state_dict()
    for world in (1, 2, 3):
        loaders = [made(world, rank) for rank in range(world)]
        for loader in loaders:
            loader.load_state_dict(state)
        found += global_batches(loaders, 2)
        states = [loader.state_dict() for loader in loaders]
        assert all(each == states[0] for each in states)
        state = states[0]
    assert found == wanted[:6]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_has_every_image_once_in_file_order(world):
    """The last batch, of two images, leaves one of three processes without: that delivers one batch less."""
    loaders = [made(world, rank, FileOrder, training=False) for rank in range(world)]
    parts = [[batch.ids.tolist() for batch in loader] for loader in loaders]
    for batch in range(6):
        assert [i for part in parts for i in part[batch]] == list(range(batch * SIZE, (batch + 1) * SIZE))
    assert sorted(i for part in parts for ids in part for i in ids) == list(range(IMAGES))
    assert all(loader.epoch == 1 for loader in loaders)


def test_dropping_the_last_batch():
    loader = made(drop_last=True)
    assert [len(batch.ids) for batch in loader] == [SIZE] * 6
    assert loader.state_dict()["images"] == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": "b"}, "set: the state was saved on other images or labels"),
        ({"batch_size": 16}, "batch_size: the state was saved with 16, and this loader has 8"),
        ({"seed": 4}, "seed: the state was saved with 4"),
        ({"version": STATE + 1}, f"version: the state is of version {STATE + 1}, and this fastaug reads {STATE}"),
        ({"images": 13}, "images: 13 is not where a batch of 8 ends"),
        ({"images": "x"}, "images: 'x' is not where a batch of 8 ends"),
        ({"images": -IMAGES}, "images: -50 is not where a batch of 8 ends"),
    ],
)
def test_a_state_of_another_loader_is_refused_and_changes_nothing(change, message):
    loader = made()
    take(loader, 1)
    before = loader.state_dict()
    with pytest.raises(RecipeError, match=message):
        loader.load_state_dict(before | change)
    assert loader.state_dict() == before


def test_all_that_differs_is_told_at_once():
    loader = made()
    with pytest.raises(RecipeError) as caught:
        loader.load_state_dict(loader.state_dict() | {"set": "b", "seed": 9})
    assert [text.partition(":")[0] for text in caught.value.problems] == ["set", "seed"]
    with pytest.raises(RecipeError, match="the state lacks set, batch_size, seed, images"):
        loader.load_state_dict({"version": STATE})
    with pytest.raises(RecipeError, match="the state is of version None"):
        loader.load_state_dict({})


class Breaks:
    """A host transform whose thread dies once, at its third call."""

    def __init__(self) -> None:
        self.calls = 0

    def sample(self, key: Any, ids: Any) -> list[Any]:  # noqa: ARG002
        self.calls += 1
        if self.calls == 3:
            raise MemoryError("no room for draws")
        return [None] * len(ids)

    def apply_one(self, image: Any, value: Any) -> Any:  # noqa: ARG002
        return image


def test_a_thread_that_dies_is_named_and_the_iteration_goes_on_behind_what_was_delivered():
    loader, seen = made(transform=Breaks()), []

    def go_on() -> Iterator[Batch]:
        for batch in loader:
            seen.extend(batch.ids.tolist())
            yield batch

    text = "batch 2 of epoch 0: a thread of the loader ended with MemoryError: no room for draws"
    with pytest.raises(FastaugError, match=text) as caught:
        list(go_on())
    assert isinstance(caught.value.__cause__, MemoryError)
    assert loader.state_dict()["images"] == 2 * SIZE
    list(go_on())
    assert seen == loader.order.epoch_ids(0).tolist()


def test_a_copy_of_the_process_is_refused():
    """There are no threads in it, so that it would wait for ever."""
    loader = made()
    child = os.fork()
    if child == 0:  # no test goes on here
        try:
            iter(loader)
        except FastaugError as error:
            os._exit(7 if "its threads are there" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_processes_that_are_joined_later_are_refused(monkeypatch):
    loader = made(follows=True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PeerError, match="made for process 0 of 1, and this is 1 of 2; make it after"):
        iter(loader)


def test_what_is_delivered_knows_its_epoch():
    loader = made(convert=lambda batch, epoch: (len(batch.ids), epoch))
    assert [epoch for _ in range(2) for _, epoch in loader] == [0] * 7 + [1] * 7

"""A loader for any training loop: iterated over once an epoch, with a state that is exact to the image.

for epoch in range(loader.epoch, epochs):
    for batch in loader:
        ...                        # loader.state_dict() here: the next batch is the one after this
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from types import TracebackType
from typing import Any

import numpy as np
import torch.distributed as dist

from fastaug.batch import Batch
from fastaug.data.class_names import some
from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import Ids, Order, Request
from fastaug.errors import DataError, FastaugError, NoImageError, PeerError, RecipeError

STATE = 1  # the version of what `state_dict` gives
DAMAGED = ("skip", "raise")  # what is done about images that cannot be decoded


def joined_processes() -> tuple[int, int]:
    """(rank, number) of the processes of this job: torch.distributed's where it is set up, else a launcher's."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class ExactLoader:
    """A loader of one split for any loop: an iterable over the batches of an epoch, of this process's part of each.

    Every `iter` begins the next epoch, the first one epoch 0; after `load_state_dict` it goes on behind the last batch
    that the state counts. One left half-way is not taken up again: the next begins the epoch after. Batches that are
    prepared ahead count as little as images that are damaged. What prepares them ends with the iterator.

    `order.batch_size` images are those of all processes together, so that a state, and what meets in which batch, do
    not depend on their number. `classes`: names by label. `skipped`: {id: reason} of the damaged images that were met;
    `path(id)` is the file of one.
    """

    def __init__(
        self,
        order: Order,
        loader: Loader,
        identity: Mapping[str, Any],
        *,
        convert: Callable[[Batch, int], Any] = lambda batch, _: batch,
        classes: Sequence[str] = (),
        path: Callable[[int], str] = str,
        damaged: str = "skip",
        training: bool = True,
        follows: bool = False,
    ) -> None:
        """`identity`: what has to be equal for a state to be taken up. `convert(batch, epoch)`: what is delivered.

        `training`: every process gets a batch, or an error, in every step. `follows`: rank and number of processes in
        `order` are those that were found, and have to be the same when an epoch begins.
        """
        self.order, self.identity, self.classes = order, dict(identity), tuple(classes)
        self.skipped, self.path = loader.skipped, path
        self._loader, self._convert = loader, convert
        self._raises, self._training, self._follows = damaged == "raise", training, follows
        self._step = 0  # batches that were delivered since the start of training
        self._left = False  # whether its last batch was of an epoch that is not at its end, and nobody asked for more
        self._turn = 0  # iterators that were begun: the last one is the one that goes on
        self._process = os.getpid()

    def __len__(self) -> int:
        """Batches of a whole epoch, the same for every process."""
        return self.order.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._step // len(self)

    def set_epoch(self, epoch: int) -> None:
        """Has the next iterator deliver `epoch`, all of it unless it is the one that a state was taken up in."""
        if not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch {epoch!r}: must be a whole number, 0 or more")
        if epoch != self.epoch or self._left:
            self._go_on_at(epoch * len(self))

    def _go_on_at(self, step: int) -> None:
        self._step, self._left, self._turn = step, False, self._turn + 1

    def __iter__(self) -> Iterator[Any]:
        self._check_process()
        self._go_on_at((self.epoch + 1) * len(self) if self._left else self._step)
        return self._delivered(self._step, self._turn)

    def _delivered(self, first: int, turn: int) -> Generator[Any, None, None]:
        """The batches from step `first` to the end of its epoch, as long as it is this iterator's turn."""
        self._check_turn(turn)
        epoch = first // len(self)
        steps = range(first, (epoch + 1) * len(self))
        requests = list(self.order.requests(steps.start, steps.stop))
        with closing(_generator(self._loader.batches(requests))) as batches:
            for step, request in zip(steps, requests, strict=True):
                self._left = False
                with _Named(f"batch {step - epoch * len(self)} of epoch {epoch}"):
                    batch = next(batches)
                self._check_images(request, batch)
                delivered = self._convert(batch, epoch) if len(batch.ids) else None
                self._step, self._left = step + 1, step + 1 < steps.stop
                if delivered is not None:
                    yield delivered
                    self._check_turn(turn)

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch is, to the image: plain numbers and texts, the same in every process at any number of them.

        Taken while a batch is worked on, it counts that batch as done.
        """
        return {"version": STATE, **self.identity, "images": self.order.position(self._step)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next iterator go on behind the last batch of `state`.

        RecipeError, naming all that differs, where another loader, or another version, gave it; nothing is changed.
        """
        problems = self._differences(state)
        if problems:
            raise RecipeError(problems)
        self._go_on_at(self._step_of(state["images"]))

    def _step_of(self, images: Any) -> int:
        try:
            if images >= 0:
                return self.order.step(images)
        except (ValueError, TypeError):
            pass
        raise RecipeError([f"images: {images!r} is not where a batch of {self.order.batch_size} ends; save it anew"])

    def _differences(self, state: Mapping[str, Any]) -> list[str]:
        if not isinstance(state, Mapping):
            return [f"the state is a {type(state).__name__}; give what state_dict() of a loader returned"]
        version = state.get("version")
        if version != STATE:
            return [f"version: the state is of version {version!r}, and this fastaug reads {STATE}; take the other one"]
        if missing := [name for name in (*self.identity, "images") if name not in state]:
            return [f"the state lacks {', '.join(missing)}; give what state_dict() of a loader returned"]
        found = []
        for name, own in self.identity.items():
            if state[name] == own:
                continue
            if name == "set":
                found.append(
                    f"set: the state was saved on other images or labels ({state[name]}, here {own}); name the "
                    "root, split and fractions that it was saved with"
                )
            else:
                found.append(
                    f"{name}: the state was saved with {state[name]!r}, and this loader has {own!r}; change it"
                )
        return found

    # ---- what is refused ----

    def _check_process(self) -> None:
        """FastaugError in a copy of the process, where the threads are not; PeerError where others came since."""
        if os.getpid() != self._process:
            raise FastaugError(
                f"this loader was made in process {self._process}, and its threads are there; make it in the process "
                f"({os.getpid()}) that iterates, and not as the dataset of a DataLoader with workers"
            )
        if self._follows and (found := joined_processes()) != (self.order.rank, self.order.world):
            raise PeerError(
                f"this loader was made for process {self.order.rank} of {self.order.world}, and this is {found[0]} of "
                f"{found[1]}; make it after the processes are joined, or give rank and world"
            )

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise FastaugError(
                "this iterator is over: another one was begun, or set_epoch or load_state_dict called; make a loader "
                "for each of two loops that run at the same time"
            )

    def _check_images(self, request: Request, batch: Batch) -> None:
        """DataError where images are missing that may not be."""
        if len(batch.ids) == len(request.ids):
            return
        missing = np.setdiff1d(request.ids, batch.ids.numpy())
        if self._raises:
            raise DataError(f"{self._told(missing)}; repair or remove it, or set damaged='skip'")
        if not len(batch.ids) and self._training and self.order.world > 1:
            text = f"no image of a batch of process {self.order.rank} can be read, and the others wait for it"
            raise NoImageError(f"{text}: {self._told(missing)}; repair them")

    def _told(self, ids: Ids) -> str:
        return some(f"{self.path(i)}: {self.skipped.get(i, 'cannot be read')}" for i in ids.tolist())


def _generator(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """`batches` as something that can be closed, and with it what prepares them."""
    yield from batches


class _Named(AbstractContextManager[None]):
    """Names the batch that was being waited for when something in a loader's threads went wrong.

    Errors of ours say what to do by themselves; what is no Exception (Ctrl-C, the end of the process) is no error.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, StopIteration):
            raise FastaugError(f"{self.what}: the loader's stream ended early; begin the iteration anew") from None
        if isinstance(error, Exception) and not isinstance(error, FastaugError):
            raise FastaugError(
                f"{self.what}: a thread of the loader ended with {type(error).__name__}: {error}; the state before "
                "this batch is still good"
            ) from error

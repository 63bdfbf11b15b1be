"""Checkpoints written while training goes on: a thread writes a copy of the state, which the next updates change.

At most one is on its way, and the next one waits for it. It is written as any other, by `checkpoint.save`, so that a
kill leaves what it leaves of a save that training waits for. A thread does: what takes long in it, copying, writing,
hashing and syncing, runs without Python's lock.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastaug.training.checkpoint import Weights
from fastaug.training.table_files import Table

T = TypeVar("T")


class Snapshot(NamedTuple):
    """All that the checkpoint of update `step` is written from; see `checkpoint.save`."""

    step: int
    best_step: int | None  # so far; its checkpoint is kept
    weights: Weights
    state: dict[str, Any]
    tables: dict[str, Table]
    texts: dict[str, bytes]  # further files of the checkpoint
    policy: dict[str, bytes]  # files of the run folder that are written behind it


class HostCopy:
    """A copy of nested values in host memory, which the next copy uses again: new pages cost more than the copying.

    From a GPU tensors come in pinned memory, in the order of the stream that training runs on: updates that are begun
    behind `take` change nothing in the copy, and nobody waits but who reads it.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._copied: torch.cuda.Event | None = None

    def take(self, values: T) -> T:
        """`values`, tensors among them copied; to be read behind `wait`, and until the next call."""
        tensors, before, self._buffers = list(_tensors(values)), self._buffers, []
        for number, tensor in enumerate(tensors):
            kept = before[number] if number < len(before) else None
            self._buffers.append(_copied(tensor.detach(), kept))
        self._copied = None
        if any(tensor.is_cuda for tensor in tensors):
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()
        memo = {id(tensor): buffer for tensor, buffer in zip(tensors, self._buffers, strict=True)}
        return copy.deepcopy(values, memo)

    def wait(self) -> None:
        """Waits until the copy is there."""
        if self._copied is not None:
            self._copied.synchronize()


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (dict, list, tuple)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _copied(tensor: Tensor, kept: Tensor | None) -> Tensor:
    """A copy of `tensor` in host memory, in that of `kept` if it has its form."""
    if kept is None or _form(kept, pinned=kept.is_pinned()) != _form(tensor, pinned=tensor.is_cuda):
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return kept.copy_(tensor, non_blocking=tensor.is_cuda)


def _form(tensor: Tensor, *, pinned: bool) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride(), pinned


class _OnItsWay(NamedTuple):
    """A checkpoint that a thread writes: `tables` are those of training, `copies` those that it writes."""

    written: Future[None]
    tables: dict[str, Table]
    copies: dict[str, Table]


class CheckpointWriter:
    """Writes the checkpoints of a run, each before training goes on, or, asynchronous, on a thread beside it.

    Context manager: what is on its way is finished before it is left, whatever ends the run, as the lock of the run
    folder is given up behind it.
    """

    def __init__(self, *, asynchronous: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "fastaug-checkpoints") if asynchronous else None
        self._host = HostCopy()
        self._on_its_way: _OnItsWay | None = None

    def save(self, snapshot: Snapshot, write: Callable[[Snapshot], None]) -> None:
        """Has `write` write `snapshot`, which may change as soon as this returns.

        Asynchronous, what goes wrong is raised by the next call of `save`, `check` or `finish`.
        """
        if self._thread is None:
            write(snapshot)
            return
        self.finish()
        taken = self._host.take(snapshot)
        for table in snapshot.tables.values():
            table.changed.zero_()  # from now on: what changes behind the copy
        written = self._thread.submit(self._write, taken, write)
        self._on_its_way = _OnItsWay(written, snapshot.tables, taken.tables)

    def _write(self, taken: Snapshot, write: Callable[[Snapshot], None]) -> None:
        self._host.wait()
        write(taken)

    def check(self) -> None:
        """Raises what went wrong with the checkpoint on its way, where that is known by now."""
        if self._on_its_way is not None and self._on_its_way.written.done():
            self.finish()

    def finish(self) -> None:
        """Waits for the checkpoint on its way; raises what went wrong with it."""
        if self._on_its_way is None:
            return
        wait([self._on_its_way.written])  # where Ctrl-C ends this, it is still on its way
        (written, tables, copies), self._on_its_way = self._on_its_way, None
        for name, table in tables.items():  # what is in no table's file: nothing of one that was written anew
            table.changed.logical_or_(copies[name].changed.to(table.changed.device))
        written.result()

    def release(self) -> None:
        """Gives up the memory of the copies; behind the last `finish`."""
        self._host = HostCopy()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            busy = self._on_its_way is not None and not self._on_its_way.written.done()
            _wait_for_all(self._thread, interrupted=busy and isinstance(error, KeyboardInterrupt))
            self._thread.shutdown(wait=False)
        failure = None if self._on_its_way is None else self._on_its_way.written.exception()
        if failure is not None and error is None:
            raise failure
        if failure is not None and error is not None:
            error.add_note(f"the checkpoint on its way was not written: {failure}")


def _wait_for_all(thread: ThreadPoolExecutor, *, interrupted: bool) -> None:
    """Waits until `thread` has nothing left to do; Ctrl-C does not end that. It joins nothing: see cpython#90882.

    `interrupted`: by Ctrl-C already. The first one is answered by a line.
    """
    told = idle = False
    while not idle:
        try:
            if interrupted and not told:
                told = True
                print("waiting for the checkpoint on its way; a kill is safe", file=sys.stderr, flush=True)
            wait([thread.submit(int)])
            idle = True
        except KeyboardInterrupt:
            interrupted = True

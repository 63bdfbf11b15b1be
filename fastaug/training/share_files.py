"""Files of a checkpoint with the shares of a network that is divided over processes: one of each process.

They are what torch.distributed.checkpoint calls shards, in its safetensors form: whole tensors are put together again,
or divided over another number of processes, from the places in the files' headers. Nothing in them is unpickled.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastaug.atomic_files import Entry, synced_entry
from fastaug.errors import StorageError, remedy_of

if TYPE_CHECKING:  # imported where shares are written or read: most checkpoints have none
    from accelerate import Accelerator
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

_SHARD, _KIND = "shard-", ".safetensors"


def is_of_share(name: str) -> bool:
    """Whether a file of a checkpoint has the share of one process."""
    return name.startswith(_SHARD) and name.endswith(_KIND)


def write_shares(
    folder: Path, make: Callable[[], None], *, tensors: Mapping[str, Tensor], accelerator: "Accelerator"
) -> dict[str, Entry]:
    """Writes `tensors`, DTensors or the same on all processes, a file of each process; the entries of all files.

    Every process must call this; the main one's `make` makes `folder`. What all have alike the main one writes.
    StorageError on all of them where one fails.
    """

    def made() -> dict[str, Entry]:
        if accelerator.is_main_process:
            make()
        return {}

    _on_all(accelerator, made)
    return _on_all(accelerator, lambda: _write_own(folder, tensors, accelerator))


def _on_all(accelerator: "Accelerator", work: Callable[[], dict[str, Entry]]) -> dict[str, Entry]:
    """What `work` returns on every process, together; once all are done, StorageError on all where one raised it."""
    from accelerate.utils import gather_object

    own: dict[str, Entry] = {}
    failed = None
    try:
        own = work()
    except StorageError as error:
        failed = error
    told = [(own, str(failed or ""))]
    of_all = told if accelerator.num_processes == 1 else gather_object(told)
    if reason := next((reason for _, reason in of_all if reason), None):
        raise StorageError(reason) from failed
    return {name: entry for entries, _ in of_all for name, entry in entries.items()}


def _write_own(folder: Path, tensors: Mapping[str, Tensor], accelerator: "Accelerator") -> dict[str, Entry]:
    """Writes this process's file of `tensors`, with all others; its entries."""
    import torch.distributed.checkpoint as dcp

    planner = dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _told(folder, "saved"):
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}  # safetensors knows no channels_last
        dcp.save(whole, storage_writer=writer, planner=planner, no_dist=accelerator.num_processes == 1)
    number = accelerator.process_index + 1
    try:
        return {path.name: synced_entry(path) for path in folder.glob(f"{_SHARD}{number:05d}-*{_KIND}")}
    except OSError as error:
        raise StorageError(f"{folder}: cannot be saved: {error}; {remedy_of(error)}") from error


def sizes_in(folder: Path, listed: Collection[str]) -> "dict[str, TensorStorageMetadata]":
    """Size and type of every tensor that the files in `folder` make up; StorageError where a file is not `listed`."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    if stray := {path.name for path in folder.glob(f"*{_KIND}")} - set(listed):
        raise StorageError(f"{folder}: {min(stray)} is not of this checkpoint; remove it")
    with _told(folder, "loaded"):
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: size for name, size in found.items() if isinstance(size, TensorStorageMetadata)}


def read_shares(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors` in place, of DTensors what this process has of them; StorageError where one is missing."""
    import torch.distributed.checkpoint as dcp

    with _told(folder, "loaded"):
        dcp.load(dict(tensors), storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


def whole_weights(folder: Path, listed: Collection[str], stem: str) -> dict[str, Tensor]:
    """The whole tensors `stem`.NAME of the files in `folder`, on the host, by NAME; none where there are none."""
    begin = f"{stem}."
    sizes = {name: size for name, size in sizes_in(folder, listed).items() if name.startswith(begin)}
    tensors = {name: torch.empty(size.size, dtype=size.properties.dtype) for name, size in sizes.items()}
    read_shares(folder, tensors)
    return {name.removeprefix(begin): tensor for name, tensor in tensors.items()}


@contextmanager
def _told(folder: Path, done: str) -> Iterator[None]:
    """Makes a StorageError of what torch.distributed.checkpoint ends with, an exception of each process that failed."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # of one process, which is meant
            yield
    except CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        remedy = remedy_of(reason) if isinstance(reason, OSError) else "choose another run.dir, or an older checkpoint"
        raise StorageError(f"{folder}: cannot be {done} by process {rank}: {reason}; {remedy}") from error
    except (SafetensorError, LookupError, ValueError, TypeError) as error:  # of a file that is sound as bytes
        raise StorageError(f"{folder}: cannot be {done}: {error}; delete it to continue from an older one") from error

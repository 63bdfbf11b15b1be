"""Checkpoints that survive a kill at any moment and notice a single flipped bit.

A checkpoint is a folder `step-XXXXXXXX` with safetensors weights, `state.pt` (tensors and plain values only), files of
learned tables (`table_files.py`), in place of weights those of a network divided over processes (`share_files.py`),
`model.json` (`model_facts.py`) and a `manifest.json` with the size and SHA-256 of every file. It is written under a
temporary name, synced, given its manifest last, renamed, read back, and only then named by the pointer file `last`. A
folder without a valid manifest is no checkpoint. A kill may come between any two of these: `settle` brings a folder to
where they would have led.
"""

import hashlib
import json
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastaug.atomic_files import Entry, open_regular, remove, sync_folder, synced_entry, write_atomically
from fastaug.errors import MACHINE, StorageError, remedy_of
from fastaug.training.share_files import is_of_share, whole_weights
from fastaug.training.table_files import Table, is_of_table, read_tables, write_tables

STEMS = ("model", "ema")
Weights = dict[str, dict[str, Tensor]]  # file stem ("model", "ema") -> state dict
WriteShares = Callable[[Path, Callable[[], None]], dict[str, Entry]]  # of a folder and what makes it
# Of the manifest and of what it lists; raise it when an older version could not load what is saved. 1: without tables;
# 3: with shares of several processes in place of weights.
FORMAT = 3
_NEEDED = {"model.safetensors", "state.pt"}
_LARGEST_MANIFEST = 1 << 20  # bytes


class Checkpoint(NamedTuple):
    """The contents of a checkpoint folder: weights by file, and all other state, rows of tables in their places.

    state["changed_rows"] has the ids whose rows are not those of their table's file, by table.
    """

    weights: Weights
    state: dict[str, Any]


def name_of(step: int) -> str:
    """The folder name of the checkpoint at `step`."""
    return f"step-{step:08d}"


def unfinished(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is until it is whole."""
    return folder / f"{name_of(step)}.tmp"


def save(
    folder: Path,
    step: int,
    weights: Weights,
    state: dict[str, Any],
    tables: Mapping[str, Table] | None = None,
    texts: Mapping[str, bytes] | None = None,
    shares: WriteShares | None = None,
) -> Path:
    """Writes the checkpoint of `step` and points `last` at it; on StorageError the old ones are intact.

    `tables`: what was changed in them counts from the checkpoint that `last` names. `texts`: further files by name.
    `shares`: writes, with all processes, files into the folder that it is given, once made, and returns their entries.
    """
    final, temporary = folder / name_of(step), unfinished(folder, step)
    # Before anything is written: what a device has to report here has nothing to do with storage.
    on_host = {
        stem: {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        for stem, tensors in weights.items()
    }

    def make() -> None:
        with _saving(final, temporary):
            remove(temporary)
            temporary.mkdir(parents=True)

    written: dict[str, Entry] = {}
    if shares is None:
        make()
    else:
        written = shares(temporary, make)  # what a peer that is gone raises is no failure of storage
    with _saving(final, temporary):
        for stem, tensors in on_host.items():
            save_file(tensors, temporary / f"{stem}.safetensors")
        torch.save(state, temporary / "state.pt")
        for name, text in (texts or {}).items():
            (temporary / name).write_bytes(text)
        anew = write_tables(temporary, tables or {}, partial(_sound_file, folder))
        _write_manifest(temporary, step, written)
        if os.path.lexists(final):  # a checkpoint of this step that was found damaged, or something else of its name
            remove(folder / "last")  # it may name this one: rather none than one that is gone
            remove(final)
        os.replace(temporary, final)
        sync_folder(folder)
        problem = verify(final)
        if problem:
            raise StorageError(f"{final}: written, but reads back wrong: {problem}; check the disk")
        _point_at(final)
    for table in anew:
        table.changed.zero_()
    return final


@contextmanager
def _saving(final: Path, temporary: Path) -> Iterator[None]:
    """Makes a StorageError of what goes wrong inside, and takes away what was written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk: torch RuntimeError, safetensors its own
        with suppress(OSError):
            remove(temporary)
        remedy = remedy_of(error) if isinstance(error, OSError) else "free space or choose another run.dir"
        raise StorageError(f"{final}: cannot be saved: {error}; {remedy}") from error


def attach(path: Path, name: str, data: bytes) -> None:
    """Puts the file `name` into the sound checkpoint folder `path`, or in place of the one that it has.

    It counts only once the manifest lists it, which is written last: a kill leaves a sound checkpoint without it.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["files"].pop(name, None):
            _seal(path, manifest)
        write_atomically(path / name, data)
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _seal(path, manifest)
    except OSError as error:
        raise StorageError(f"{path / name}: cannot be written: {error}; {remedy_of(error)}") from error


def _point_at(path: Path) -> None:
    """Names the checkpoint folder `path` in the pointer file `last` beside it."""
    pointer = path.parent / "last"
    if pointer.is_dir():
        remove(pointer)
    write_atomically(pointer, path.name.encode())


def _sound_file(folder: Path, name: str) -> Path | None:
    """The file `name` of the checkpoint that `last` names if it is as it was saved: nothing else may be shared."""
    step = _pointed(folder)
    path = folder / name_of(-1 if step is None else step)
    try:
        files = json.loads((path / "manifest.json").read_bytes())["files"]
        return path / name if name in files and _changed(path, {name: files[name]}) is None else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_manifest(folder: Path, step: int, written: Mapping[str, Entry] | None = None) -> None:
    """Writes the manifest of all files in `folder`; entries of those that others have `written` are taken as they are.

    So it vouches for what each process wrote, not for what of it another one sees.
    """
    known = written or {}
    files = {path.name: known.get(path.name) or synced_entry(path) for path in sorted(folder.iterdir())} | dict(known)
    kind = FORMAT if any(map(is_of_share, files)) else 2 if any(map(is_of_table, files)) else 1
    _seal(folder, {"format": kind, "step": step, "torch": torch.__version__, "files": files})


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes `manifest` with the digest of what it says."""
    manifest["sha256"] = _digest({name: value for name, value in manifest.items() if name != "sha256"})
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2).encode())


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint folder `path`, or None; OutOfReachError when the storage fails."""
    try:
        with open_regular(path / "manifest.json") as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
        if manifest.pop("sha256") != _digest(manifest):
            return "manifest.json does not match its SHA-256"
        return _misfit(path, manifest) or _changed(path, manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise _out_of_reach(path, error) from error
        return f"no valid manifest: {error}"


def _misfit(path: Path, manifest: dict[str, Any]) -> str | None:
    """What a sound manifest says that is not of a checkpoint at `path` that this version reads, or None."""
    files, named = manifest["files"], _step_in(path.name)
    if manifest["format"] not in range(1, FORMAT + 1):
        return f"manifest.json is of format {manifest['format']!r}, this version reads {FORMAT}; update fastaug"
    needed = {"state.pt"} if any(map(is_of_share, files)) else _NEEDED
    if missing := needed - files.keys():
        return f"manifest.json does not list {', '.join(sorted(missing))}"
    if outside := [name for name in files if name != os.path.basename(name)]:
        return f"manifest.json lists {outside[0]!r}, which is not a file of this folder"
    if named is not None and named != manifest["step"]:
        return f"manifest.json is of step {manifest['step']!r}"
    return None


def _changed(path: Path, files: dict[str, Any]) -> str | None:
    """The first of the manifest's `files` that is not what was saved, or None."""
    for name, expected in files.items():
        with open_regular(path / name) as file:
            if os.fstat(file.fileno()).st_size != expected["size"]:
                return f"{name} has another size than was saved"
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                return f"{name} does not match its SHA-256"
    return None


class OutOfReachError(StorageError):
    """A checkpoint cannot be read for a reason of the machine's, not its own: it may be sound."""


def _out_of_reach(path: Path, error: OSError) -> OutOfReachError:
    return OutOfReachError(f"{path} cannot be read ({error.strerror}); check the storage, then start again")


def load(path: Path, *, whole: bool = True) -> Checkpoint:
    """The verified contents of a checkpoint folder; StorageError when it is damaged, or cannot be read.

    Without `whole` the weights of a divided network are left out, for each process to take its share of them.
    """
    problem = verify(path)
    if problem:
        raise StorageError(f"{path}: damaged checkpoint: {problem}; delete it to continue from an older one")
    files = files_of(path)
    try:
        read = whole or not any(map(is_of_share, files))
        weights = {stem: found for stem in STEMS if read and (found := weights_of(path, stem))}
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        rows, changed = read_tables(path, files)
        if rows:
            state["meta"]["learned"].update(rows)
        return Checkpoint(weights, state | {"changed_rows": changed})
    except torch.OutOfMemoryError:
        raise
    except _UNLOADABLE as error:
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise _out_of_reach(path, error) from error
        reason = str(error).partition(". ")[0]  # torch goes on to advise loading it unsafely
        raise StorageError(f"{path}: cannot be loaded: {reason}; delete it to continue from an older one") from error


def files_of(path: Path) -> dict[str, Entry]:
    """The files that the manifest of the sound checkpoint folder `path` vouches for; no other is to be loaded."""
    files: dict[str, Entry] = json.loads((path / "manifest.json").read_bytes())["files"]
    return files


def weights_of(path: Path, stem: str) -> dict[str, Tensor]:
    """The whole weights `stem`, "model" or "ema", in the sound checkpoint folder `path`; none where it has none."""
    listed = files_of(path)
    if any(map(is_of_share, listed)):
        return whole_weights(path, listed, stem)
    return load_file(path / f"{stem}.safetensors") if f"{stem}.safetensors" in listed else {}


_UNLOADABLE = (  # what torch and safetensors raise for files that are sound as bytes and hold something else
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError),
    *(AssertionError, struct.error, pickle.UnpicklingError, SafetensorError),
)


def _step_in(name: str) -> int | None:
    """The step of a checkpoint folder of that name; None for other names."""
    found = re.fullmatch(r"step-([0-9]{8,})", name)
    return int(found[1]) if found else None


def steps_of(folder: Path) -> list[int]:
    """The steps of the finished checkpoint folders below `folder`, oldest first."""
    try:
        found = [_step_in(path.name) for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error}; {remedy_of(error)}") from error
    return sorted(step for step in found if step is not None)


def newest_first(folder: Path) -> list[Path]:
    """The finished checkpoint folders below `folder`, sound or not."""
    return [folder / name_of(step) for step in reversed(steps_of(folder))]


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint below `folder`, and a warning for each newer one that had to be passed over."""
    warnings: list[str] = []
    for path in newest_first(folder):
        problem = verify(path)
        if problem is None:
            return path, warnings
        warnings.append(f"{path} is passed over: {problem}")
    return None, warnings


def settle(path: Path, keep: int, best: int | None) -> None:
    """Ends a save that was killed behind its rename: `last` names `path`, the newest sound checkpoint; then prunes.

    What is newer and was passed over stays until the next save.
    """
    folder, named = path.parent, _pointed(path.parent)
    if named != _step_in(path.name):
        try:
            _point_at(path)
        except OSError as error:
            raise StorageError(f"{folder / 'last'}: cannot be written: {error}; {remedy_of(error)}") from error
    prune(folder, keep, best, passed_over=True)


def _pointed(folder: Path) -> int | None:
    """The step of the checkpoint that `last` names; None without a readable one."""
    try:
        with open_regular(folder / "last") as file:
            return _step_in(file.read(64).decode("ascii", "replace"))
    except OSError:
        return None


def prune(folder: Path, keep: int, best: int | None, *, passed_over: bool = False) -> None:
    """Removes all but the `keep` newest checkpoints and the one of step `best`, and what killed saves left.

    Newer than what `last` names is only what a continued run passed over as damaged: it goes too, unless `passed_over`
    is to stay.
    """
    try:
        for path in folder.glob("*.tmp"):
            remove(path)
        last = _pointed(folder)
        steps = [step for step in steps_of(folder) if last is None or step <= last]
        for step in steps_of(folder):
            kept = step in steps[-keep:] or step == best or (passed_over and step not in steps)
            if not kept:
                remove(folder / name_of(step))
    except OSError as error:
        raise StorageError(f"{folder}: old checkpoints cannot be removed: {error}; {remedy_of(error)}") from error

"""Checkpoints that survive a kill at any moment and notice a single flipped bit.

A checkpoint is a folder `step-XXXXXXXX` with safetensors weights, `state.pt` (tensors and plain values only) and a
`manifest.json` with the size and SHA-256 of every file. It is written under a temporary name, synced, given its
manifest last, renamed, read back, and only then named by the pointer file `last`. A folder without a valid manifest
is no checkpoint.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastaug.atomic_files import sync_folder, write_atomically
from fastaug.errors import StorageError

Weights = dict[str, dict[str, Tensor]]  # file stem ("model", "ema") -> state dict


class Checkpoint(NamedTuple):
    """The contents of a checkpoint folder: weights by file, and all other state."""

    weights: Weights
    state: dict[str, Any]


def name_of(step: int) -> str:
    """The folder name of the checkpoint at `step`."""
    return f"step-{step:08d}"


def save(folder: Path, step: int, weights: Weights, state: dict[str, Any]) -> Path:
    """Writes the checkpoint of `step` and points `last` at it; on StorageError the old ones are intact."""
    final, temporary = folder / name_of(step), folder / f"{name_of(step)}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for stem, tensors in weights.items():
            save_file(
                {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
                temporary / f"{stem}.safetensors",
            )
        torch.save(state, temporary / "state.pt")
        _write_manifest(temporary, step)
        if final.exists():  # a checkpoint of this step that was found damaged
            (folder / "last").unlink(missing_ok=True)  # it may name this one: rather none than one that is gone
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync_folder(folder)
        problem = verify(final)
        if problem:
            raise StorageError(f"{final}: written, but reads back wrong: {problem}; check the disk")
        write_atomically(folder / "last", name_of(step).encode())
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk: torch RuntimeError, safetensors its own
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"{final}: cannot be saved: {error}; free space or choose another run.dir") from error
    return final


def _write_manifest(folder: Path, step: int) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            files[path.name] = {
                "size": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    manifest = {"format": 1, "step": step, "torch": torch.__version__, "files": files}
    manifest["sha256"] = _digest(manifest)
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2).encode())


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> str | None:
    """What is wrong with the checkpoint folder `path`, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest.pop("sha256") != _digest(manifest):
            return "manifest.json does not match its SHA-256"
        for name, expected in manifest["files"].items():
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    return f"{name} does not match its SHA-256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no valid manifest: {error}"
    return None


def load(path: Path) -> Checkpoint:
    """The verified contents of a checkpoint folder; StorageError when it is damaged."""
    problem = verify(path)
    if problem:
        raise StorageError(f"{path}: damaged checkpoint: {problem}; delete it to continue from an older one")
    try:
        weights = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
        return Checkpoint(weights, torch.load(path / "state.pt", map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be loaded: {error}") from error


def steps_of(folder: Path) -> list[int]:
    """The steps of the finished checkpoint folders below `folder`, oldest first."""
    found = ((path, re.fullmatch(r"step-(\d{8,})", path.name)) for path in folder.glob("step-*"))
    return sorted(int(name[1]) for path, name in found if name and path.is_dir())


def latest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint below `folder`, and a warning for each newer one that had to be passed over."""
    warnings: list[str] = []
    for step in reversed(steps_of(folder)):
        path = folder / name_of(step)
        problem = verify(path)
        if problem is None:
            return path, warnings
        warnings.append(f"{path} is passed over: {problem}")
    return None, warnings


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the `keep` newest checkpoints and the one of step `best`, and what killed saves left.

    Newer than what `last` names is only what a continued run passed over as damaged: it goes too.
    """
    try:
        for path in folder.glob("*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        last = int((folder / "last").read_text().removeprefix("step-"))
        steps = [step for step in steps_of(folder) if step <= last]
        for step in steps_of(folder):
            if step not in steps[-keep:] and step != best:
                shutil.rmtree(folder / name_of(step))
    except OSError as error:
        raise StorageError(f"{folder}: old checkpoints cannot be removed: {error}; choose another run.dir") from error

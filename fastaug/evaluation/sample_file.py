"""samples.npz of a run folder: statistics of every image by id, of training images and of those that are evaluated.

One array a column, a row for each image that is trained on or evaluated, in the order of the splits:

    id, split (see SPLITS), given (its label in the data), trained (the label that training saw: another one only where
    run.plant put it), probability, other, other_probability, margin, cross_entropy, forgotten, visits, harm

Training images: over the run (fastaug/evaluation/training_record.py). Others: what the final network
says of them, once.
`harm` is there where a meta step told of it, NaN for images of other splits.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.data.broken_arrays import BROKEN
from fastaug.data.build import DataParts
from fastaug.errors import StorageError
from fastaug.evaluation.training_record import said

FILE = "samples.npz"
SPLITS = ("train", "select", "test")
FORMAT = 1
KINDS = {
    **{"id": np.int64, "split": np.int8, "given": np.int32, "trained": np.int32, "visits": np.int32},
    **{"other": np.int32, "forgotten": np.int32},
    **dict.fromkeys(("probability", "other_probability", "margin", "cross_entropy", "harm"), np.float32),
}
Columns = dict[str, npt.NDArray[Any]]


class SplitRecord:
    """What a network says of each image of a held-out split: the columns of samples.npz, in any order of ids."""

    def __init__(self) -> None:
        self._ids: list[Tensor] = []
        self._found: list[Tensor] = []

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Keeps a batch: ids [N] on the host, logits [N, C], labels [N]."""
        found, _ = said(logits, labels)
        self._ids.append(ids)
        self._found.append(torch.stack([found.given, found.margin, found.other_given, found.other.float()], 1))

    def columns(self, accelerator: Accelerator) -> Columns:
        """Of all processes' images, each once; every process must call this."""
        device = accelerator.device
        rows = torch.cat(self._found) if self._found else torch.zeros(0, 4, device=device)
        ids = torch.cat(self._ids).to(device) if self._ids else torch.zeros(0, dtype=torch.int64, device=device)
        if accelerator.num_processes > 1:
            ids = accelerator.gather(accelerator.pad_across_processes(ids, pad_index=-1))
            rows = accelerator.gather(accelerator.pad_across_processes(rows))
            rows, ids = rows[ids >= 0], ids[ids >= 0]
        given, margin, top, other = rows.double().cpu().numpy().T
        found = {"probability": np.exp(given), "other": other, "other_probability": np.exp(top), "margin": margin}
        zeros = np.zeros(len(given))
        return {"id": ids.cpu().numpy(), **found, "cross_entropy": -given, "forgotten": zeros, "visits": zeros + 1}


def archive(parts: DataParts, train: dict[str, Tensor], held_out: dict[str, Columns]) -> bytes:
    """The file: the statistics [N] of all ids of a training, and the columns of evaluated splits by name."""
    assert parts.index is not None
    ids = parts.splits.train
    pieces = {"train": {"id": ids, **{name: column.cpu().numpy()[ids] for name, column in train.items()}}, **held_out}
    names = [name for name in KINDS if name not in ("split", "given", "trained") and name in pieces["train"]]
    joined: Columns = {name: np.concatenate([_filled(piece, name) for piece in pieces.values()]) for name in names}
    lengths = [len(piece["id"]) for piece in pieces.values()]
    joined["split"] = np.repeat([SPLITS.index(name) for name in pieces], lengths)
    joined["trained"] = parts.index.labels[joined["id"]]
    joined["given"] = parts.given_labels()[joined["id"]]
    file = io.BytesIO()
    typed: dict[str, Any] = {name: column.astype(KINDS[name]) for name, column in joined.items()}
    np.savez(file, format=FORMAT, **typed)
    return file.getvalue()


def _filled(piece: Columns, name: str) -> npt.NDArray[Any]:
    return piece[name] if name in piece else np.full(len(piece["id"]), np.nan)


@dataclass(frozen=True)
class Samples:
    """The columns of a samples.npz."""

    columns: Columns

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["id"])

    def of(self, split: str) -> "Samples":
        """The rows of one split."""
        chosen = self["split"] == SPLITS.index(split)
        return Samples({name: column[chosen] for name, column in self.columns.items()})


def read_samples(run: Path) -> Samples:
    """The statistics in a run folder; StorageError, with the remedy, where there are none or they are no such file."""
    path = run / FILE
    if not path.exists():
        why = "has not ended, or kept none" if (run / "recipe.yaml").exists() else "is no run folder"
        raise StorageError(
            f"{path}: there are no statistics: the run {why}; train it to its end with run.sample_record=true, by this "
            "version, on images of one class each (not data.multi_label, nor synthetic ones)"
        )
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            columns = {name: stored[name] for name in KINDS if name in stored}
            version = int(stored["format"])
    except BROKEN as error:
        raise StorageError(f"{os.fspath(path)}: cannot be read ({error}); run the training command again") from error
    lengths = {len(column) if column.ndim == 1 else -1 for column in columns.values()}
    missing = [name for name in KINDS if name not in columns and name != "harm"]
    if version != FORMAT or missing or len(lengths) != 1 or -1 in lengths:
        found = f"format {version}, without {', '.join(missing) or 'nothing'}, columns of {len(lengths)} lengths"
        raise StorageError(f"{path}: is not a file of this version ({found}); run the training command again")
    if len(np.unique(columns["id"])) < len(columns["id"]):
        raise StorageError(f"{path}: has an image twice, so it was changed; run the training command again")
    return Samples(columns)

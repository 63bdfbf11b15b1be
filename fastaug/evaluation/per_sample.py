"""Figures of single training images, mean losses and learned weights: samples.csv, and how well they find errors."""

import csv
import io
import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from fastaug.batch import Batch
from fastaug.data.build import DataParts
from fastaug.losses import Objective
from fastaug.meta.parameters import LearnedParts
from fastaug.recipe.schema import Recipe
from fastaug.targets import SoftTarget


class SampleLosses:
    """Mean training loss of every image over a run: images with wrong labels keep large ones."""

    def __init__(self, size: int, losses: Objective, device: torch.device) -> None:
        self._losses = losses
        self._sums = torch.zeros(2, size, dtype=torch.float64, device=device)  # losses, visits

    @torch.no_grad()
    def add(self, batch: Batch, logits: Tensor, target: SoftTarget) -> None:
        """The losses, without loss weights, of a batch; blank images behind it do not count."""
        n = len(batch.ids)
        losses = self._losses(logits, target._replace(weight=torch.ones_like(target.weight)))[:n].double()
        self._sums.index_add_(1, batch.ids.to(losses.device), torch.stack([losses, torch.ones_like(losses)]))

    def state(self, accelerator: Accelerator) -> Tensor:
        """Sums over all processes, for a checkpoint; every process must call this."""
        total: Tensor = accelerator.reduce(self._sums, reduction="sum")
        return total

    def restore(self, sums: Tensor, main: bool) -> None:
        """Continues from `state`; the sums go to the main process."""
        self._sums.zero_()
        known = min(self._sums.shape[1], sums.shape[1])  # images that are only evaluated may have come or gone since
        if main:
            self._sums[:, :known] = sums[:, :known].to(self._sums.device)

    def means(self, accelerator: Accelerator) -> Tensor:
        """Mean loss [size], NaN for images that were never trained on; every process must call this."""
        losses, visits = self.state(accelerator)
        return losses / visits


def build_sample_losses(
    recipe: Recipe, accelerator: Accelerator, parts: DataParts, losses: Objective
) -> SampleLosses | None:
    """The table that run.log_losses asks for, of the training's `losses` of single samples."""
    if not recipe.run.log_losses:
        return None
    assert parts.index is not None
    return SampleLosses(len(parts.index.labels), losses, accelerator.device)


def sample_figures(learned: LearnedParts | None, mean_losses: Tensor | None) -> dict[str, Tensor]:
    """Figures of all ids, [size] each, by name: the first tells wrong labels best."""
    found = {} if mean_losses is None else {"loss": mean_losses}
    return found if learned is None else found | learned.per_sample()


# Sign under which a figure is larger for images whose label looks wrong: of samples.csv, then of samples.npz.
_SUSPICIOUS = {"loss": 1, "weight": -1}
_STATISTICS = {
    **{"score": -1, "probability": -1, "margin": -1},
    **{"cross_entropy": 1, "other_probability": 1, "forgotten": 1, "harm": 1},
}


def found_errors(parts: DataParts, figures: dict[str, Tensor], most: int | None = None) -> dict[str, float]:
    """Area under the ROC curve of each figure for the training images whose label data.labels replaced.

    `most`: of so many images, spread over the split; all of them have to be sorted. Default: of all.
    """
    if parts.index is None or parts.folder_labels is None:
        return {}
    train = parts.splits.train
    if parts.planted is not None:
        train = np.setdiff1d(train, parts.planted.ids)
    train = train[:: -(-len(train) // most) if most else 1]
    wrong = torch.from_numpy(parts.index.labels[train] != parts.folder_labels[train])
    if not wrong.any() or wrong.all():
        return {}
    ids, signs = torch.from_numpy(train.copy()), _SUSPICIOUS | _STATISTICS
    scores = {
        name: _ranks(signs[name] * figure[ids.to(figure.device)].cpu())
        for name, figure in figures.items()
        if name in signs and not figure.isnan().all()
    }
    return {f"{name}_auroc": binary_auroc(score, wrong.long()).item() for name, score in scores.items()}


def _ranks(score: Tensor) -> Tensor:
    """Place of each score among the different ones, in [0, 1]: what is between 0 and 1 is not taken for a logit.

    NaN, of images that were never trained on, is the least suspicious.
    """
    place = torch.unique(torch.nan_to_num(score.double(), nan=-torch.inf), return_inverse=True)[1]
    return place / max(int(place.max()), 1)


def suspicious_first(ids: list[int], columns: dict[str, list[float]]) -> list[int]:
    """`ids` by how wrong their labels look; by the later figures where the first is equal, unknown ones behind all."""
    told = [(sign, columns[name]) for name, sign in _SUSPICIOUS.items() if name in columns]

    def key(i: int) -> list[tuple[bool, float]]:
        values = [-sign * column[i] for sign, column in told]
        return [(math.isnan(value), 0.0 if math.isnan(value) else value) for value in values]

    return sorted(ids, key=key)


def samples_table(parts: DataParts, figures: dict[str, Tensor]) -> bytes:
    """CSV with a line for every training image, the most suspicious first: id, path, class trained as, figures.

    In UTF-8; bytes of a class folder's name that are none stand as escapes.
    """
    assert parts.index is not None
    columns = {name: figure.cpu().tolist() for name, figure in figures.items()}
    cells = {name: [f"{value:.6g}" for value in column] for name, column in columns.items()}
    if "learned_label" in columns:
        cells["learned_label"] = [parts.classes[label] for label in columns["learned_label"]]
    ids: list[Any] = parts.splits.train.tolist()
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["id", "path", "class", *columns])
    for i in suspicious_first(ids, columns):
        label = parts.classes[int(parts.index.labels[i])]
        writer.writerow([i, parts.name_of(i), label, *(column[i] for column in cells.values())])
    return out.getvalue().encode(errors="backslashreplace")

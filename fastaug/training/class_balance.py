"""Uneven classes: how many training images each class has, and what recipes make of that in the order and the loss."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.data.build import DataParts
from fastaug.data.class_names import shown, some
from fastaug.data.class_sampling import ClassDraws, class_shares
from fastaug.data.label_files import read_class_numbers
from fastaug.errors import DataError, RecipeError
from fastaug.recipe.schema import Recipe

Numbers = npt.NDArray[np.float64]


def class_counts(parts: DataParts, key: str) -> npt.NDArray[np.int64]:
    """Training images [C] of each class, by the labels that are trained on; DataError, naming `key`, for one of none.

    Without the meta split, unless that is trained on too. Damaged images count.
    """
    assert parts.index is not None
    counts = np.bincount(parts.index.labels[parts.splits.train], minlength=len(parts.classes))
    if none := [parts.classes[label] for label in np.flatnonzero(counts == 0)]:
        raise DataError(
            f"{key}: no training image of {len(none)} classes: {some(none)}; add images, remove the class's folder, or "
            f"leave {key} out"
        )
    return counts


def drawn_counts(recipe: Recipe, parts: DataParts, key: str) -> Numbers:
    """Images [C] of each class in an epoch as data.sampling draws it."""
    counts = class_counts(parts, key)
    if recipe.data.sampling == "natural":
        return counts.astype(np.float64)
    return class_shares(counts, recipe.data.sampling) * counts.sum()


def build_draws(recipe: Recipe, parts: DataParts) -> ClassDraws | None:
    """What data.sampling puts into an epoch instead of every image once; None where it is natural."""
    if recipe.data.sampling == "natural":
        return None
    assert parts.index is not None
    counts, ids = class_counts(parts, "data.sampling"), parts.splits.train
    return ClassDraws(ids, parts.index.labels[ids], class_shares(counts, recipe.data.sampling), recipe.run.seed)


def build_adjustment(recipe: Recipe, parts: DataParts, device: torch.device) -> Tensor | None:
    """What augment.logit_adjustment adds to training logits, tau * log prior [outputs]; None where tau is 0.

    The prior is the share of each class in what is drawn, clean images by their meta.train_weight. The "other" class
    has none: it takes 1 / C, so that nothing changes for even classes.
    """
    tau, key = recipe.augment.logit_adjustment, "augment.logit_adjustment"
    if not tau:
        return None
    counts = drawn_counts(recipe, parts, key) * mean_weights(recipe, parts)
    prior = counts / counts.sum()
    if recipe.augment.other_class:
        prior = np.append(prior, 1 / len(counts))
    return torch.tensor(tau * np.log(prior), dtype=torch.float32, device=device)


def mean_weights(recipe: Recipe, parts: DataParts) -> Numbers:
    """The mean of meta.train_weight [C] over the training images of each class."""
    assert parts.index is not None
    labels, classes = parts.index.labels, len(parts.classes)
    clean, every = (np.bincount(labels[ids], minlength=classes) for ids in (parts.clean, parts.splits.train))
    return 1 + (recipe.meta.train_weight - 1) * clean / np.maximum(every, 1)


def class_weights(recipe: Recipe, parts: DataParts) -> Numbers | None:
    """Loss weight [C] of each class by augment.class_weight, 1 in the mean over the images drawn; None: all are 1.

    inverse: 1 / n_c; effective: (1 - beta) / (1 - beta^n_c), the inverse effective number of Cui et al. 2019
    (arXiv:1901.05555). RecipeError for given weights that are not of these classes.
    """
    kind, key = recipe.augment.class_weight, "augment.class_weight"
    if kind == "none":
        return None
    counts = drawn_counts(recipe, parts, key)
    if kind == "inverse":
        weights = 1 / counts
    elif kind == "effective":
        beta = recipe.augment.class_weight_beta
        weights = 1 / -np.expm1(counts * np.log(beta))
    else:
        weights = given_weights(kind, parts.classes)
    mean = (counts * weights).sum() / counts.sum()
    if mean == 0:
        raise RecipeError([f"{key}: all weights are 0; give a class more"])
    return weights / mean


def given_weights(given: Sequence[float] | str, classes: Sequence[str]) -> Numbers:
    """The weights [C] of a list in the order of class names, or of a file; RecipeError where they do not fit."""
    if isinstance(given, str):
        return read_class_numbers(Path(given).expanduser(), classes, "augment.class_weight")
    if len(given) != len(classes):
        raise RecipeError(
            [
                f"augment.class_weight: {len(given)} weights for {len(classes)} classes; give one for each in the "
                f"order of the network's outputs, {shown(classes[0])} first and {shown(classes[-1])} last "
                "(classes.json of a run folder has it), or a file of lines class<TAB>weight"
            ]
        )
    return np.array(given, dtype=np.float64)

"""Loss weights of training images that need no meta step: doubted labels count less, clean images more."""

import numpy as np
import torch
from torch import Tensor

from fastaug.data.build import DataParts
from fastaug.evaluation.training_record import TrainingRecord
from fastaug.recipe.schema import Recipe


class ImageWeights:
    """Weights by id: `clean_weight` for the images `clean`, the record's agreement to the power `trust` for others.

    The agreement is the mean probability of the given label over that of the most probable class, over the epochs
    before: a soft form of leaving out images whose label the averaged prediction contradicts (SELF, Nguyen et al., ICLR
    2020). What a network is sure of is right long before it has learned wrong labels by heart, and an image with little
    weight is not learned by heart.
    """

    def __init__(self, record: TrainingRecord | None, trust: float, clean: Tensor, clean_weight: float) -> None:
        """`clean` [images] bool; `record` may be None where `trust` is 0."""
        self._record, self._trust = record, trust
        self._clean, self._clean_weight = clean, clean_weight

    def __call__(self, ids: Tensor) -> Tensor:
        """The weights [n] of `ids` [n]."""
        clean = self._clean[ids.to(self._clean.device)]
        doubted = torch.ones(len(ids), device=clean.device)
        if self._record is not None and self._trust:
            doubted = self._record.agreement(ids) ** self._trust
        return torch.where(clean, self._clean_weight, doubted)


def build_image_weights(
    recipe: Recipe, parts: DataParts, record: TrainingRecord | None, device: torch.device
) -> ImageWeights | None:
    """The weights that augment.trust and meta.train_weight ask for, on the training's `device`; None if all are 1."""
    trust, clean_weight = recipe.augment.trust, recipe.meta.train_weight
    if parts.index is None or (not trust and clean_weight == 1):
        return None
    clean = np.zeros(len(parts.index), dtype=bool)
    clean[parts.clean] = True
    return ImageWeights(record, trust, torch.from_numpy(clean).to(device), clean_weight)

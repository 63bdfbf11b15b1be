"""Loss weights of training images without a meta step: of doubted labels, clean images and rare classes."""

import numpy as np
import torch
from torch import Tensor

from fastaug.data.build import DataParts
from fastaug.evaluation.training_record import TrainingRecord
from fastaug.recipe.schema import Recipe
from fastaug.training.class_balance import class_weights


class ImageWeights:
    """Weights by id: `clean_weight` for the images `clean`, the record's agreement to the power `trust` for others.

    Times `own` [images], where it is given.

    The agreement is the mean probability of the given label over that of the most probable class, over the epochs
    before: a soft form of leaving out images whose label the averaged prediction contradicts (SELF, Nguyen et al., ICLR
    2020). What a network is sure of is right long before it has learned wrong labels by heart, and an image with little
    weight is not learned by heart.
    """

    def __init__(
        self,
        record: TrainingRecord | None,
        trust: float,
        clean: Tensor,
        clean_weight: float,
        own: Tensor | None = None,
    ) -> None:
        """`clean` [images] bool; `record` may be None where `trust` is 0."""
        self._record, self._trust = record, trust
        self._clean, self._clean_weight, self._own = clean, clean_weight, own

    def __call__(self, ids: Tensor) -> Tensor:
        """The weights [n] of `ids` [n]."""
        clean = self._clean[ids.to(self._clean.device)]
        doubted = torch.ones(len(ids), device=clean.device)
        if self._record is not None and self._trust:
            doubted = self._record.agreement(ids) ** self._trust
        weights = torch.where(clean, self._clean_weight, doubted)
        return weights if self._own is None else weights * self._own[ids.to(self._own.device)]


def build_image_weights(
    recipe: Recipe, parts: DataParts, record: TrainingRecord | None, device: torch.device
) -> ImageWeights | None:
    """The weights that augment.trust, augment.class_weight and meta.train_weight ask for; None if all are 1.

    On the training's `device`.
    """
    trust, clean_weight = recipe.augment.trust, recipe.meta.train_weight
    by_class = class_weights(recipe, parts)
    if parts.index is None or (not trust and clean_weight == 1 and by_class is None):
        return None
    clean = np.zeros(len(parts.index), dtype=bool)
    clean[parts.clean] = True
    own = None if by_class is None else torch.from_numpy(by_class[parts.index.labels]).float().to(device)
    return ImageWeights(record, trust, torch.from_numpy(clean).to(device), clean_weight, own)

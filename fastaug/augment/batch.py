"""Stages 4 and 5 of the data's way: from decoded uint8 batches to normalised images and soft targets."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastaug.data import Batch
from fastaug.ops.crop_mix import Sampling, crop_mix, identity_params, sample_crop_mix
from fastaug.recipe import Recipe
from fastaug.seeding import Key, Stream
from fastaug.targets import SoftTarget, smoothed


@dataclass(frozen=True)
class BatchAugment:
    """The augmentation of a run: draws are keyed by (seed, epoch, id), so the same batch always looks the same."""

    recipe: Recipe
    classes: int
    sampling: Sampling = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling", Sampling(hflip=self.recipe.augment.hflip))

    def training(self, batch: Batch, epoch: int) -> tuple[Tensor, SoftTarget]:
        """Augmented images [N, 3, S, S] float32, channels last, and their targets."""
        data = self.recipe.data
        key = Key(self.recipe.run.seed, epoch, Stream.MIX)
        size = (data.img_size, data.img_size)
        params = sample_crop_mix(key, batch.ids, size, self.sampling, mean=data.mean, std=data.std)
        images, target = crop_mix(
            batch.images, batch.labels, params, classes=self.classes, mean=data.mean, std=data.std
        )
        smoothing = self.recipe.augment.smoothing
        return images, smoothed(target, smoothing) if smoothing else target

    def evaluation(self, batch: Batch) -> Tensor:
        """Normalised images [N, 3, S, S] float32, channels last."""
        data = self.recipe.data
        params = identity_params(len(batch.ids), torch.zeros(3))
        images, _ = crop_mix(
            batch.images, batch.labels, params, classes=self.classes, mean=data.mean, std=data.std
        )
        return images

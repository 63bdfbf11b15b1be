"""Stages 4 and 5 of the data's way: from decoded uint8 batches to normalised images and soft targets.

Every draw is keyed by (seed, epoch, id): the same sample looks the same in any batch, process or micro-batch.
"""

from functools import cached_property

import torch
from torch import Tensor

from fastaug.augment.erasing import Cutout, RandomErasing
from fastaug.augment.hidden import HiddenCutMix
from fastaug.augment.policies import Policy, build_policy
from fastaug.data import Batch
from fastaug.ops.crop_mix import CropMixParams, Sampling, Soften, crop_mix, identity_params, sample_crop_mix
from fastaug.recipe import SMALLEST_BATCH, Recipe
from fastaug.seeding import Key, Stream
from fastaug.targets import SoftTarget, hard_target, smoothed


class BatchAugment:
    """The augmentation of one run; `hidden` mixes inside the network and is None when images are mixed."""

    def __init__(self, recipe: Recipe, classes: int, hidden: HiddenCutMix | None = None) -> None:
        self.recipe, self.classes, self.hidden = recipe, classes, hidden
        augment, side = recipe.augment, recipe.data.img_size
        self.size = (side, side)
        self.policy: Policy | None = build_policy(
            augment.aa, img_size=side, mean=recipe.data.mean, color_jitter=augment.color_jitter
        )
        self.erasing: list[RandomErasing | Cutout] = []
        if augment.reprob:
            erasing = RandomErasing(augment.reprob, self.size, augment.remode, augment.recount)  # type: ignore[arg-type]
            self.erasing.append(erasing)
        if augment.cutout:
            self.erasing.append(Cutout(augment.cutout, self.size))

    @cached_property
    def sampling(self) -> Sampling:
        """How the op's parameters are drawn."""
        a = self.recipe.augment
        return Sampling(
            sigma=a.shift,
            limit=a.shift_limit,
            shift=a.shift_dist,
            fill=a.fill,
            fill_value=a.fill_value,
            hflip=a.hflip,
            mixup=a.mixup,
            cutmix=0 if self.hidden else a.cutmix,
            mixup_prob=a.mixup_prob,
            mixup_switch_prob=a.mixup_switch_prob,
            mixup_mode=a.mixup_mode,
            lam_fold=a.lam_fold,
            mix_group=a.mix_group,
        )

    @cached_property
    def soften(self) -> Soften:
        """How visibility becomes confidence."""
        a = self.recipe.augment
        return Soften(
            k=a.soften_k,
            p_max=a.soften_p_max,
            threshold=a.soften_threshold,
            visibility=a.soften_visibility,
            on=a.soften,
            rule=a.soften_rule,
            other=a.other_class,
        )

    def strength(self, epoch: int) -> float:
        """Factor on the shift: 1, and 1 / anneal_factor in the last anneal_epochs (Soft Augmentation's fine-tuning)."""
        annealed = epoch >= self.recipe.train.epochs - self.recipe.augment.anneal_epochs
        return 1 / self.recipe.augment.anneal_factor if annealed else 1.0

    def sample(self, batch: Batch, epoch: int) -> CropMixParams:
        """The op's parameters for a batch."""
        key, data = Key(self.recipe.run.seed, epoch, Stream.MIX), self.recipe.data
        strength = self.strength(epoch)
        return sample_crop_mix(
            key, batch.draws, self.size, self.sampling, mean=data.mean, std=data.std, strength=strength
        )

    def training(self, batch: Batch, epoch: int) -> tuple[Tensor, SoftTarget]:
        """Augmented images [N, 3, S, S] float32, channels last, and their targets."""
        data = self.recipe.data
        images = batch.images
        if self.policy is not None:
            key = Key(self.recipe.run.seed, epoch, Stream.POLICY)
            images = self.policy.apply(images, self.policy.sample(key, batch.draws))
        params = self.sample(batch, epoch)
        images, target = crop_mix(
            images, batch.labels, params, classes=self.classes, soften=self.soften, mean=data.mean, std=data.std
        )
        for erasing in self.erasing:
            key = Key(self.recipe.run.seed, epoch, Stream.ERASE)
            images = erasing.apply(images, erasing.sample(key, batch.draws))
        if self.hidden is not None:
            target = self.hidden.draw(Key(self.recipe.run.seed, epoch, Stream.MIX), batch, self.classes)
        smoothing = self.recipe.augment.smoothing
        return self._padded(images, smoothed(target, smoothing) if smoothing else target)

    def _padded(self, images: Tensor, target: SoftTarget) -> tuple[Tensor, SoftTarget]:
        """Adds blank images without weight where damage left fewer than BatchNorm needs."""
        missing = SMALLEST_BATCH - len(images)
        if missing <= 0:
            return images, target
        device = images.device
        blank = hard_target(torch.zeros(missing, dtype=torch.int64, device=device), torch.zeros(missing, device=device))
        joined = (torch.cat(pair) for pair in zip(target[:3], blank[:3], strict=True))
        return torch.cat([images, images.new_zeros(missing, 3, *self.size)]), SoftTarget(*joined)

    def evaluation(self, batch: Batch) -> Tensor:
        """Normalised images [N, 3, S, S] float32, channels last."""
        data = self.recipe.data
        params = identity_params(len(batch.ids), torch.zeros(3))
        images, _ = crop_mix(batch.images, batch.labels, params, classes=self.classes, mean=data.mean, std=data.std)
        return images

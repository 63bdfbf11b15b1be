"""The augmentation pipeline: from a decoded uint8 batch to normalised images and soft targets.

Every draw is keyed by (seed, epoch, id): the same sample looks the same in any batch, process or micro-batch, and a
part of a batch can be made a second time, on autograd's graph of what the meta step learns.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from fastaug.augment.erasing import Cutout, RandomErasing
from fastaug.augment.feature_cutmix import HiddenCutMix
from fastaug.augment.known_shifts import known_shift
from fastaug.augment.learned_effects import LearnedEffects, Part, View
from fastaug.batch import Batch
from fastaug.ops.crop_mix import (
    CropMixParams,
    Sampling,
    Soften,
    crop_mix,
    identity_params,
    sample_crop_mix,
    soft_targets,
    some_samples,
)
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe
from fastaug.seeding import Key, Stream, are_first
from fastaug.targets import SoftTarget, hard_target, mixed_weight, smoothed


class BatchAugment:
    """The augmentation of one run from batch to network input, after the fixed policy that its loader applies.

    `hidden` mixes inside the network, `learned` is what a meta step changes. `dtype` is that of training images:
    bfloat16 saves half of the writing where autocast rounds them to it anyway, in the network's first layer.
    `image_weights(ids)`: loss weights [n] of training images, besides those that are learned; the same in all of an
    update. `multi_hot` uint8 [images, C] by id: the classes of images that have any number of them.
    """

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        hidden: HiddenCutMix | None = None,
        learned: LearnedEffects | None = None,
        dtype: torch.dtype = torch.float32,
        image_weights: Callable[[Tensor], Tensor] | None = None,
        multi_hot: Tensor | None = None,
    ) -> None:
        self.recipe, self.classes, self.hidden, self.dtype = recipe, classes, hidden, dtype
        self.image_weights, self.multi_hot = image_weights, multi_hot
        self.learned = LearnedEffects() if learned is None else learned
        self.shifts = recipe.data.known_shift != "none" and recipe.data.known_shift_train
        self.channels = recipe.data.channels
        self.outputs = classes + recipe.augment.other_class  # of the network
        self.views = 1 + recipe.augment.copies  # of an image in a batch; the first, if of more, is not augmented
        self._take_side(recipe.data.img_size)

    def _take_side(self, side: int) -> None:
        """Makes ready for images of `side` x `side` pixels."""
        augment, self.size = self.recipe.augment, (side, side)
        self.erasing: list[RandomErasing | Cutout] = []
        if augment.reprob:
            erasing = RandomErasing(augment.reprob, self.size, augment.remode, augment.recount, self.channels)
            self.erasing.append(erasing)
        if augment.cutout:
            self.erasing.append(Cutout(augment.cutout, self.size))

    @cached_property
    def sampling(self) -> Sampling:
        """The distributions of the op's parameters, from the recipe."""
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

    def sampling_of(self, epoch: int) -> Sampling:
        """`sampling`, without mixing from augment.mixup_off_epoch on."""
        off = self.recipe.augment.mixup_off_epoch
        return replace(self.sampling, mixup=0, cutmix=0) if 0 < off <= epoch else self.sampling

    @cached_property
    def soften(self) -> Soften:
        """The recipe's settings of softening: how visibility turns into confidence."""
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
        params = sample_crop_mix(
            key,
            batch.draws,
            self.size,
            self.sampling_of(epoch),
            mean=data.mean,
            std=data.std,
            strength=self.strength(epoch),
            white=1 if self.learned.acts_on_images or self.shifts else 255,
        )
        return params if self.views == 1 else _spared(params, torch.from_numpy(are_first(batch.draws)))

    def spared(self, batch: Batch) -> int:
        """How many samples of a batch, its first, are images without augmentation: none but where copies come beside.

        RuntimeError where an image's copies are not all there.
        """
        if self.views == 1:
            return 0
        images = len(batch.ids) // self.views
        if not torch.equal(batch.ids, batch.ids[:images].repeat(self.views)):
            raise RuntimeError(f"a batch of {len(batch.ids)} samples does not hold {self.views} views of each image")
        return images

    @torch.no_grad()
    def training(self, batch: Batch, epoch: int) -> tuple[Tensor, SoftTarget]:
        """Augmented images [N, C, S, S] `dtype`, channels last, and their targets; nothing of it on a graph."""
        if (side := self.recipe.side(epoch)) != self.size[0]:
            self._take_side(side)
        view = self._view(batch, epoch, self.sample(batch, epoch), self.learned.rows(batch.ids))
        return self._padded(*self._apply(view, epoch, self.dtype))

    def part(self, batch: Batch, epoch: int, chosen: Tensor, *, with_images: bool = True) -> Part:
        """The samples at positions `chosen` [n] of what `training` gave, on the graph of what is learned.

        Bit for bit, but float32 images whatever `dtype` is: autocast rounds them where it rounds those. Without
        `with_images` there are none, which saves most of the work.
        """
        n = len(chosen)
        taken, params = some_samples(self.sample(batch, epoch), chosen)
        batch = Batch(*(field[taken.to(field.device)] for field in batch))
        ids, position = torch.unique(batch.ids, return_inverse=True)
        leaves = self.learned.rows(ids)
        rows = {name: leaf[position.to(leaf.device)] for name, leaf in leaves.items()}
        view = self._view(batch, epoch, params, rows)
        images, target = self._apply(view, epoch, torch.float32) if with_images else (None, self._target(view, epoch))
        chance = self._log_probability(view, epoch)
        first = SoftTarget(*(None if field is None else field[:n] for field in target))  # type: ignore[arg-type]
        images, chance = (None if found is None else found[:n] for found in (images, chance))
        return Part(images, first, chance, ids, leaves, view)

    def _view(self, batch: Batch, epoch: int, params: CropMixParams, rows: dict[str, Tensor]) -> View:
        return View(batch, params, Key(self.recipe.run.seed, epoch, Stream.LEARNED), rows, self.spared(batch))

    def _apply(self, view: View, epoch: int, dtype: torch.dtype) -> tuple[Tensor, SoftTarget]:
        """Images of type `dtype` and targets: learned policy, fused op, erasing, feature CutMix, learned targets."""
        batch, data, seed = view.batch, self.recipe.data, self.recipe.run.seed
        images, spared = self._shifted(batch.images) if self.shifts else batch.images, view.spared
        if self.learned.acts_on_images:
            images = images if self.shifts else images.permute(0, 3, 1, 2) / 255
            images = self._learned_images(images, view, epoch)
        images, target = crop_mix(
            images,
            batch.labels,
            view.params,
            classes=self.classes,
            soften=self.learned.soften(self.soften),
            mean=data.mean,
            std=data.std,
            dtype=dtype,
        )
        for erasing in self.erasing:
            drawn = erasing.sample(Key(seed, epoch, Stream.ERASE), batch.draws[spared:])
            erasing.apply(images[spared:], drawn)
        return images, self._learned_target(target, view, epoch)

    def _target(self, view: View, epoch: int) -> SoftTarget:
        """The targets of `_apply`, without its images."""
        soften = self.learned.soften(self.soften)
        target = soft_targets(view.batch.labels.long(), view.params, self.size, self.classes, soften)
        return self._learned_target(target, view, epoch)

    def _learned_target(self, target: SoftTarget, view: View, epoch: int) -> SoftTarget:
        """The fused op's targets under feature CutMix, learned targets and label smoothing."""
        if self.hidden is not None:
            target = self.hidden.draw(Key(self.recipe.run.seed, epoch, Stream.MIX), view.batch, self.classes)
        target = self.learned.target(target, view)
        if self.image_weights is not None:
            weight = mixed_weight(target.mass, view.pairs(self.image_weights(view.batch.ids)))
            target = target._replace(weight=target.weight * weight)
        if self.multi_hot is not None:
            own = self.multi_hot[view.batch.ids.to(self.multi_hot.device)].float()
            target = target._replace(rows=view.pairs(own))
        smoothing = self.learned.smoothing(self.recipe.augment.smoothing)
        return smoothed(target, smoothing) if isinstance(smoothing, Tensor) or smoothing else target

    def _learned_images(self, images: Tensor, view: View, epoch: int) -> Tensor:
        """Float images under what is learned, once that acts; images that copies come beside are left as they are."""
        if epoch < self.recipe.augment.start_epochs:
            return images
        changed = self.learned.images(images[view.spared :], view.without_spared())
        return torch.cat([images[: view.spared], changed]) if view.spared else changed

    def _log_probability(self, view: View, epoch: int) -> Tensor | None:
        """Log probability [N] of the operations drawn, 0 where none could be; None if none are drawn."""
        if epoch < self.recipe.augment.start_epochs:
            return None
        chance = self.learned.log_probability(view.without_spared())
        return chance if chance is None or not view.spared else torch.cat([chance.new_zeros(view.spared), chance])

    def _padded(self, images: Tensor, target: SoftTarget) -> tuple[Tensor, SoftTarget]:
        """Adds blank images without weight where damage left fewer than BatchNorm needs."""
        missing = max(SMALLEST_BATCH, self.views) - len(images)
        if missing <= 0:
            return images, target
        device = images.device
        blank = hard_target(torch.zeros(missing, dtype=torch.int64, device=device), torch.zeros(missing, device=device))
        if target.rows is not None:
            blank = blank._replace(rows=target.rows.new_full((missing, *target.rows.shape[1:]), 1 / self.outputs))
        pairs = zip(target, blank, strict=True)
        joined = (None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
        return torch.cat([images, images.new_zeros(missing, self.channels, *self.size)]), SoftTarget(*joined)  # type: ignore[arg-type]

    def evaluation(self, batch: Batch) -> Tensor:
        """Normalised images [N, C, S, S] float32, channels last, under the recipe's known shift."""
        shifts = self.recipe.data.known_shift != "none"
        return self._normalised(self._shifted(batch.images) if shifts else batch.images, batch, torch.float32)

    @torch.no_grad()
    def unaugmented(self, batch: Batch) -> tuple[Tensor, SoftTarget]:
        """Normalised training images [N, C, S, S] `dtype`, channels last, as they were decoded; hard targets."""
        images = self._normalised(self._shifted(batch.images) if self.shifts else batch.images, batch, self.dtype)
        return self._padded(images, hard_target(batch.labels))

    def _normalised(self, images: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
        data, params = self.recipe.data, identity_params(len(batch.ids), torch.zeros(self.channels))
        return crop_mix(images, batch.labels, params, classes=self.classes, mean=data.mean, std=data.std, dtype=dtype)[
            0
        ]

    def _shifted(self, images: Tensor) -> Tensor:
        """uint8 images [N, S, S, C] under the recipe's known shift, as floats [N, C, S, S]."""
        return known_shift(images.permute(0, 3, 1, 2) / 255, self.recipe.data.known_shift, self.recipe.data.mean)

    def floats(self, batch: Batch, *, held_out: bool) -> Tensor:
        """Images [N, C, S, S] in [0, 1] of a batch without augmentation, under the known shift of their split."""
        shifts = self.recipe.data.known_shift != "none" if held_out else self.shifts
        return self._shifted(batch.images) if shifts else batch.images.permute(0, 3, 1, 2) / 255

    def under_policy(self, batch: Batch, epoch: int) -> Tensor:
        """`evaluation` of images under what is learned, as `epoch` draws it, without crop, flip or mixing."""
        if not self.learned.acts_on_images:
            return self.evaluation(batch)
        params = identity_params(len(batch.ids), torch.zeros(self.channels))
        view = View(batch, params, Key(self.recipe.run.seed, epoch, Stream.LEARNED), self.learned.rows(batch.ids))
        images = self.learned.images(self.floats(batch, held_out=True), view)
        return self._normalised(images, batch, torch.float32)


def _spared(params: CropMixParams, first: Tensor) -> CropMixParams:
    """The parameters without shift and flip for the samples `first` [N] bool, and without partners for all."""
    still = {name: torch.where(first, 0, getattr(params, name)) for name in ("dy", "dx")}
    return replace(params, **still, flip=params.flip & ~first, partner=torch.arange(len(params)))  # type: ignore[arg-type]

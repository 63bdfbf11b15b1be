"""Stages 4 and 5 of the data's way: from decoded uint8 batches to normalised images and soft targets.

Every draw is keyed by (seed, epoch, id): the same sample looks the same in any batch, process or micro-batch, and a
part of a batch can be made a second time, on autograd's graph of what the meta step learns.
"""

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastaug.augment.erasing import Cutout, RandomErasing
from fastaug.augment.feature_cutmix import HiddenCutMix
from fastaug.augment.fixed.base import Policy
from fastaug.augment.fixed.build import build_policy
from fastaug.batch import Batch
from fastaug.hypergrad.problem import Samples
from fastaug.meta.parameters import MetaParameters
from fastaug.ops.crop_mix import (
    CropMixParams,
    Sampling,
    Soften,
    crop_mix,
    first_samples,
    identity_params,
    sample_crop_mix,
)
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe
from fastaug.seeding import Key, Stream
from fastaug.targets import SoftTarget, hard_target, mixed_weight, smoothed

if TYPE_CHECKING:
    from fastaug.augment.shared_policy import SharedPolicy


class Part(NamedTuple):
    """The first samples of a batch as the network saw them, on the graph of what is learned.

    `ids` (each once, on the host) and `rows` are those of the table of sample weights that the part depends on.
    """

    samples: Samples
    ids: Tensor
    rows: Tensor | None


class BatchAugment:
    """The augmentation of one run; `hidden` mixes inside the network, `learned` is what a meta step changes."""

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        hidden: HiddenCutMix | None = None,
        learned: MetaParameters | None = None,
    ) -> None:
        self.recipe, self.classes, self.hidden, self.learned = recipe, classes, hidden, learned
        augment, side = recipe.augment, recipe.data.img_size
        self.outputs = classes + augment.other_class  # of the network
        self.size = (side, side)
        self.policy: Policy | None = build_policy(
            augment.aa, img_size=side, mean=recipe.data.mean, color_jitter=augment.color_jitter
        )
        self.erasing: list[RandomErasing | Cutout] = []
        if augment.reprob:
            erasing = RandomErasing(augment.reprob, self.size, augment.remode, augment.recount)
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

    @property
    def soften(self) -> Soften:
        """How visibility becomes confidence."""
        a, learned = self.recipe.augment, self.learned
        return Soften(
            k=a.soften_k if learned is None or learned.softness is None else learned.softness(),
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
        return sample_crop_mix(
            key,
            batch.draws,
            self.size,
            self.sampling,
            mean=data.mean,
            std=data.std,
            strength=self.strength(epoch),
            white=255 if self._policy() is None else 1,
        )

    @torch.no_grad()
    def training(self, batch: Batch, epoch: int) -> tuple[Tensor, SoftTarget]:
        """Augmented images [N, 3, S, S] float32, channels last, and their targets; nothing of it on a graph."""
        table = None if self.learned is None else self.learned.weights
        weights = None if table is None else table(batch.ids)
        return self._padded(*self._apply(batch, epoch, self.sample(batch, epoch), weights))

    def part(self, batch: Batch, epoch: int, n: int) -> Part:
        """The first `n` samples of what `training` gave, bit for bit, on the graph of what is learned."""
        assert self.learned is not None
        rows, params = first_samples(self.sample(batch, epoch), n)
        part = Batch(*(field[rows.to(field.device)] for field in batch))
        ids, position = torch.unique(part.ids, return_inverse=True)
        table = self.learned.weights
        leaf = None if table is None else table.rows(ids)
        weights = None if table is None or leaf is None else leaf[position.to(leaf.device)]
        images, target = self._apply(part, epoch, params, weights)
        chance = self._log_probability(part, epoch, params)
        classes, mass, weight = (field[:n] for field in target[:3])
        return Part(
            Samples(images[:n], SoftTarget(classes, mass, weight), None if chance is None else chance[:n]), ids, leaf
        )

    def _apply(
        self, batch: Batch, epoch: int, params: CropMixParams, weights: Tensor | None
    ) -> tuple[Tensor, SoftTarget]:
        """Images and targets of a batch under `params` and the learned weights [N] of its samples."""
        data, seed = self.recipe.data, self.recipe.run.seed
        images = batch.images
        if self.policy is not None:
            images = self.policy.apply(images, self.policy.sample(Key(seed, epoch, Stream.POLICY), batch.draws))
        if self._policy() is not None:
            images = self._transformed(images.permute(0, 3, 1, 2) / 255, batch, epoch)
        images, target = crop_mix(
            images, batch.labels, params, classes=self.classes, soften=self.soften, mean=data.mean, std=data.std
        )
        for erasing in self.erasing:
            images = erasing.apply(images, erasing.sample(Key(seed, epoch, Stream.ERASE), batch.draws))
        if self.hidden is not None:
            target = self.hidden.draw(Key(seed, epoch, Stream.MIX), batch, self.classes)
        if weights is not None:
            pairs = torch.stack([weights, weights[params.partner.to(weights.device)]], 1)
            target = target._replace(weight=target.weight * mixed_weight(target.mass, pairs))
        return images, self._smoothed(target)

    def _smoothed(self, target: SoftTarget) -> SoftTarget:
        """The target with the recipe's label smoothing, or the learned one."""
        learned, fixed = self.learned, self.recipe.augment.smoothing
        if learned is not None and learned.smoothing is not None:
            return smoothed(target, learned.smoothing())
        return smoothed(target, fixed) if fixed else target

    def _policy(self) -> "SharedPolicy | None":
        return None if self.learned is None else self.learned.policy

    def _transformed(self, images: Tensor, batch: Batch, epoch: int) -> Tensor:
        """Images [N, 3, S, S] in [0, 1] under the learned policy."""
        policy, key = self._policy(), Key(self.recipe.run.seed, epoch, Stream.LEARNED)
        assert policy is not None
        if self.recipe.meta.probabilities == "gumbel":
            return policy.relaxed(images, key, batch.draws, self.recipe.meta.temperature)
        return policy.apply(images, policy.sample(key, batch.draws))

    def _log_probability(self, batch: Batch, epoch: int, params: CropMixParams) -> Tensor | None:
        """Of the operations that each sample shows, its partner's too: [N], where they learn by score function."""
        policy = self._policy()
        if policy is None or self.recipe.meta.probabilities != "score":
            return None
        draws = policy.sample(Key(self.recipe.run.seed, epoch, Stream.LEARNED), batch.draws)
        own = policy.log_probability(draws).to(batch.labels.device)
        mixed = ((params.pasted() > 0) | (params.own_share() < 1)).to(own)
        return own + mixed * own[params.partner.to(own.device)]

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

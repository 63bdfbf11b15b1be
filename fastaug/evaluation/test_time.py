"""Test-time augmentation: predictions averaged over copies of an image under the policy that it was trained with."""

import numpy as np
import torch
from torch import Tensor, nn

from fastaug.augment.fixed.build import build_policy
from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.recipe.schema import Recipe
from fastaug.seeding import Key, Stream, copies_of

EPOCH = 2**32 - 1  # of its draws: one that no training has


class TestTimeAugmentation:
    """Averages what a network says of `copies` copies of an image, under the fixed policy and what is learned.

    Crops, flips, soft crops and mixing are left out. The mean of the probabilities is not weighted: copies are drawn
    with the policy's probabilities, so that likely operations count for more already. A copy is a function of the run's
    seed, the image's id and the copy's number, whatever the batch or process.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, recipe: Recipe, augment: BatchAugment, copies: int) -> None:
        self.augment, self.copies, self.seed = augment, copies, recipe.run.seed
        side = recipe.eval.img_size or recipe.data.img_size
        self.policy = build_policy(
            recipe.augment.aa, img_size=side, mean=recipe.data.mean, color_jitter=recipe.augment.color_jitter
        )

    def logits(self, network: nn.Module, batch: Batch, classes: int) -> Tensor:
        """Log of the mean probability of each of the first `classes` outputs: [N, classes], double."""
        logs = []
        for copy in range(1, 1 + self.copies):
            outputs = network(self.images(batch, copy))[:, :classes]
            logs.append(outputs.double().log_softmax(1))
        return torch.stack(logs).logsumexp(0) - np.log(self.copies)

    def images(self, batch: Batch, copy: int) -> Tensor:
        """The normalised images [N, 3, S, S] of copy number `copy` (from 1) of each image of a batch."""
        draws = copies_of(batch.ids.numpy(), np.full(len(batch.ids), copy))
        batch = batch._replace(draws=torch.from_numpy(draws))
        if self.policy is not None:
            values = self.policy.sample(Key(self.seed, EPOCH, Stream.POLICY), draws)
            batch = batch._replace(images=self.policy.apply(batch.images, values))
        return self.augment.under_policy(batch, EPOCH)

"""The training loss that a recipe names, as a sum over a micro-batch."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from fastaug.losses import LOSSES, published_weighting, soft_bce, soft_focal
from fastaug.recipe import Augment
from fastaug.targets import SoftTarget

Objective = Callable[[Tensor, SoftTarget], Tensor]  # logits [N, C], targets -> sum over the N samples


def build_objective(augment: Augment) -> Objective:
    """The loss `augment.loss` with its arguments."""
    loss = LOSSES[augment.loss]
    if augment.loss == "focal":
        loss = partial(soft_focal, gamma=augment.focal_gamma)
    if augment.loss == "bce":
        loss = partial(soft_bce, target_threshold=augment.bce_target_thresh, sum_classes=augment.bce_sum)
    if not augment.published_weighting:
        return partial(loss, reduction="sum")

    def published(logits: Tensor, target: SoftTarget) -> Tensor:
        losses = loss(logits, target._replace(weight=target.weight.new_ones(len(logits))), reduction="none")
        real = target.weight > 0  # not the blank images that stand in for damaged ones
        return published_weighting(losses[real], target.weight[real]) * real.sum() if real.any() else losses.sum() * 0

    return published

"""The training loss that a recipe names: as a sum over a micro-batch, or sample by sample for the meta step."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from fastaug.losses import LOSSES, published_weighting, soft_bce, soft_focal, soft_gce, trimmed
from fastaug.recipe.schema import Augment
from fastaug.targets import SoftTarget

Objective = Callable[[Tensor, SoftTarget], Tensor]  # logits [N, C], targets -> loss


def sample_losses(augment: Augment) -> Objective:
    """The loss `augment.loss` with its arguments, of each sample: [N]."""
    return partial(_loss(augment), reduction="none")


def _loss(augment: Augment) -> Callable[..., Tensor]:
    if augment.loss == "focal":
        return partial(soft_focal, gamma=augment.focal_gamma)
    if augment.loss == "bce":
        return partial(soft_bce, target_threshold=augment.bce_target_thresh, sum_classes=augment.bce_sum)
    if augment.loss == "gce":
        return partial(soft_gce, q=augment.gce_q)
    return LOSSES[augment.loss]


def build_objective(augment: Augment) -> Objective:
    """The loss `augment.loss`, summed over a micro-batch."""
    loss = _loss(augment)
    if augment.trim:
        return lambda logits, target: trimmed(loss(logits, target, reduction="none"), augment.trim)
    if not augment.published_weighting:
        return partial(loss, reduction="sum")

    def published(logits: Tensor, target: SoftTarget) -> Tensor:
        losses = loss(logits, target._replace(weight=target.weight.new_ones(len(logits))), reduction="none")
        real = target.weight > 0  # not the blank images that stand in for damaged ones
        return published_weighting(losses[real], target.weight[real]) * real.sum() if real.any() else losses.sum() * 0

    return published

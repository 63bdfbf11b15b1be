"""Losses against soft targets: loss(logits [B,C], target, reduction), weighted, reduced by `reduce_losses`.

Each is computed in float32 (float64 for float64 logits) and has finite derivatives in logits and masses for
every target, one-hot and uniform ones included.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastaug.recipe.schema import Augment, Loss
from fastaug.targets import (
    Reduction,
    SoftTarget,
    check_logits,
    dense,
    expectation,
    hard_target,
    log_probabilities,
    probabilities,
    reduce_losses,
    soft_cross_entropy,
)

# Below it a target probability counts as this much in a logarithm: t log t is off by at most EPS/e and its
# derivative at t = 0 is log EPS instead of minus infinity.
EPS = 1e-12


def target_entropy(target: SoftTarget, num_classes: int) -> Tensor:
    """Entropy of each `target` of `num_classes` C in nats (Shannon 1948), 0 log 0 = 0: [B].

    In closed form unless there are `rows`.
    """
    table, counts = probabilities(target, num_classes)
    return -(counts * table * table.clamp_min(EPS).log()).sum(1)


def soft_kl(logits: Tensor, target: SoftTarget, reduction: Reduction = "mean") -> Tensor:
    """KL(target || softmax) = cross-entropy - H(target) of `logits` [B,C], in nats (Kullback & Leibler 1951).

    In the logits, the gradient of cross-entropy. `reduction` as in `reduce_losses`.
    """
    losses = -expectation(log_probabilities(logits, target), target) - target_entropy(target, logits.shape[1])
    return reduce_losses(losses, target.weight, reduction)


def symmetric_kl(logits: Tensor, target: SoftTarget, reduction: Reduction = "mean", eps: float = 1e-6) -> Tensor:
    """(KL(t || p) + KL(p || t)) / 2 with p the softmax of `logits` [B,C], t the `target`, in nats: AutoDO's loss.

    Gudovskiy et al. 2021. `reduction` as in `reduce_losses`. Target probabilities below `eps` count as `eps` in the
    logarithms: against a hard label, probability put elsewhere costs log(1/eps) per unit instead of infinitely much.
    """
    log_p = log_probabilities(logits, target)
    t = dense(target, logits.shape[1])
    logs = torch.where((t == 0) & (log_p == -torch.inf), 0, log_p)  # of a class that neither side names
    losses = ((log_p.exp() - t) * (logs - t.clamp_min(eps).log())).sum(1) / 2
    return reduce_losses(losses, target.weight, reduction)


def soft_focal(logits: Tensor, target: SoftTarget, reduction: Reduction = "mean", gamma: float = 2.0) -> Tensor:
    """-sum_c t_c (1 - p_c)^gamma log p_c: focal loss (Lin et al. 2017, eq. 4) averaged under the `target`.

    In nats. `logits` [B,C], `reduction` as in `reduce_losses`. ValueError for `gamma` below 0.
    """
    if gamma < 0:
        raise ValueError(f"the focal exponent gamma must be >= 0, found {gamma}")
    log_p = log_probabilities(logits, target)
    missing = (-torch.expm1(log_p)).clamp_min(EPS)  # for gamma < 1 the slope at 0 is infinite
    ruled_out = log_p == -torch.inf
    values = torch.where(ruled_out, log_p, missing**gamma * torch.where(ruled_out, 0, log_p))
    return reduce_losses(-expectation(values, target), target.weight, reduction)


def soft_bce(
    logits: Tensor,
    target: SoftTarget,
    reduction: Reduction = "mean",
    target_threshold: float | None = None,
    sum_classes: bool = False,
) -> Tensor:
    """Binary cross-entropy of C sigmoids against the target, in nats (Wightman et al. 2021, "ResNet strikes back").

    A sample's loss, of its row of `logits` [B,C], is the mean over classes, or the sum (`sum_classes`); with
    `target_threshold`, a probability, every class whose target is above it is fully on and the others are off, as in
    timm. `reduction` as in `reduce_losses`.
    """
    check_logits(logits, target)
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = values.clamp_min(torch.finfo(values.dtype).min)  # torch gives nan for -inf against a target of 0
    t = dense(target, logits.shape[1]).to(values.dtype)
    if target_threshold is not None:
        t = (t > target_threshold).to(values.dtype)
    losses = F.binary_cross_entropy_with_logits(values, t, reduction="none")
    return reduce_losses(losses.sum(1) if sum_classes else losses.mean(1), target.weight, reduction)


def soft_gce(logits: Tensor, target: SoftTarget, reduction: Reduction = "mean", q: float = 0.7) -> Tensor:
    """sum_c t_c (1 - p_c^q) / q, generalised cross-entropy (Zhang & Sabuncu 2018, eq. 6) averaged under the `target`.

    Robust to wrong labels: the larger q, the less samples count that the network gives a small probability. Towards q 0
    it is cross-entropy in nats, at q 1 the probability of the other classes. `logits` [B,C], `reduction` as in
    `reduce_losses`. ValueError for `q` outside of (0, 1].
    """
    if not 0 < q <= 1:
        raise ValueError(f"the exponent q of generalised cross-entropy must be in (0, 1], found {q}")
    log_p = log_probabilities(logits, target)
    return reduce_losses(-expectation(torch.expm1(q * log_p) / q, target), target.weight, reduction)


def trimmed(losses: Tensor, share: float) -> Tensor:
    """The sum of `losses` [B] but for the round(share B) largest, scaled by B / (samples that are left)."""
    kept = len(losses) - round(share * len(losses))
    return losses.topk(kept, largest=False).values.sum() * (len(losses) / max(kept, 1))


def published_weighting(losses: Tensor, weight: Tensor) -> Tensor:
    """mean(weight) * mean(losses) of weights and unweighted losses [B]; only to reproduce published numbers.

    The released Soft Augmentation code multiplies weights [B,1] by losses [B] and averages the [B,B] product:
    every sample gets the mean weight. `reduce_losses` is what the paper states.
    """
    return weight.mean() * losses.mean()


# ---- copies of an image beside itself ----


class _OneSided(torch.autograd.Function):
    """KL(p || q) [N] of log p and log q [N,C], whose gradient takes p for a constant.

    `detach` would say the same to a first derivative, and hide from a second one that p moves with the weights: the
    hypergradient is that of the gradient that training follows, wherever p comes from.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor) -> Tensor:
        ctx.save_for_backward(log_p)
        return divergence(log_p, log_q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (log_p,) = ctx.saved_tensors
        return None, -gradient[:, None] * log_p.exp()


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_c p_c (log p_c - log q_c) of `log_p`, `log_q` [N,C], in nats: [N] (Kullback & Leibler 1951)."""
    return (log_p.exp() * torch.where(log_p == -torch.inf, 0, log_p - log_q)).sum(1)


def mixed_losses(
    logits: Tensor,
    target: SoftTarget,
    reduction: Reduction = "mean",
    *,
    loss: Callable[..., Tensor] = soft_cross_entropy,
    copies: int = 1,
    clean: float = 1.0,
    copied: float = 1.0,
    consistency: float = 1.0,
    detach: bool = False,
) -> Tensor:
    """Loss of images beside `copies` augmented copies of each: clean l(image) + copied l(copy) + consistency KL.

    Rows of `logits` [B,C] and `target` are all images, then the first copy of each, then the second. A copy's row has a
    `copies`-th of its terms, so that an image's rows add up to its loss, the mean over its copies in it. KL(p of the
    image || p of the copy), in nats, is the consistency loss of UDA (Xie et al. 2020, eq. 1), which takes the first for
    a constant (`detach`); smart_augmentation, whose mixed loss this is, does not. `reduction` as in `reduce_losses`.
    ValueError unless there are 1 + `copies` rows an image.
    """
    images, left = divmod(len(logits), 1 + copies)
    if left:
        raise ValueError(
            f"{len(logits)} rows are no images with {copies} copies of each; pass all of an image together"
        )
    losses = loss(logits, target._replace(weight=torch.ones_like(target.weight)), reduction="none")
    if consistency:
        logs = log_probabilities(logits, target)
        between: Callable[[Tensor, Tensor], Tensor] = _OneSided.apply if detach else divergence
        apart = between(logs[:images].repeat(copies, 1), logs[images:])
    else:
        apart = torch.zeros_like(losses[images:])
    rows = torch.cat([clean * losses[:images], (copied * losses[images:] + consistency * apart) / copies])
    return reduce_losses(rows, target.weight, reduction)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": soft_cross_entropy,
    "kl": soft_kl,
    "symmetric_kl": symmetric_kl,
    "focal": soft_focal,
    "bce": soft_bce,
    "gce": soft_gce,
}


# ---- the loss that a recipe names ----

Objective = Callable[[Tensor, SoftTarget], Tensor]  # logits [N, C], targets -> loss


def sample_losses(augment: Augment, adjustment: Tensor | None = None) -> Objective:
    """The loss `augment.loss` with its arguments, of each sample: [N]; `adjustment` as in `adjusted`."""
    return adjusted(partial(_loss(augment), reduction="none"), adjustment)


def adjusted(loss: Objective, adjustment: Tensor | None) -> Objective:
    """`loss` of logits + `adjustment` [C], in float32: logit adjustment (Menon et al. 2021, eq. 10) in training alone.

    With tau * log prior the network learns logits that are best for even classes, which evaluation takes as they are.
    """
    if adjustment is None:
        return loss
    return lambda logits, target: loss(logits + adjustment, target)


def _loss(augment: Augment) -> Callable[..., Tensor]:
    """That of the recipe, with what it says of copies."""
    if not augment.copies:
        return _named(augment)
    return partial(
        mixed_losses,
        loss=_named(augment),
        copies=augment.copies,
        clean=augment.clean_loss,
        copied=augment.copies_loss,
        consistency=augment.consistency,
        detach=augment.consistency_detach,
    )


def _named(augment: Augment) -> Callable[..., Tensor]:
    if augment.loss == "focal":
        return partial(soft_focal, gamma=augment.focal_gamma)
    if augment.loss == "bce":
        return partial(soft_bce, target_threshold=augment.bce_target_thresh, sum_classes=augment.bce_sum)
    if augment.loss == "gce":
        return partial(soft_gce, q=augment.gce_q)
    return LOSSES[augment.loss]


def build_objective(augment: Augment, adjustment: Tensor | None = None) -> Objective:
    """The loss `augment.loss`, summed over a micro-batch; `adjustment` as in `adjusted`."""
    return adjusted(_summed(augment), adjustment)


def _summed(augment: Augment) -> Objective:
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


def validation_loss(name: Loss, augment: Augment) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss `name`, with the arguments of the recipe's training loss, against hard labels: logits, labels -> sum."""
    if name == "ce":
        return partial(F.cross_entropy, reduction="sum")
    loss = _named(replace(augment, loss=name))
    return lambda logits, labels: loss(logits, hard_target(labels), reduction="sum")

"""One target form for every method: mass on at most two named rows, the rest uniform over all C classes.

    target_i = sum_j mass_ij * r_ij + (1 - sum_j mass_ij) * uniform(C)

with r_ij the one-hot row of classes_ij, or the learned soft label rows_ij. Hard labels, label smoothing, Mixup
(arXiv:1710.09412), CutMix (arXiv:1905.04899), Soft Augmentation (arXiv:2211.04625) and learned soft labels are all of
this form, and cross-entropy against it reads two entries and one mean per sample. Everything is differentiable in
masses, weights, rows, visibility v and exponent k, in reverse and in forward mode; nothing but the checks at the end
waits for the device.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class SoftTarget(NamedTuple):
    """Targets of B samples: classes [B,2] int64, mass [B,2] and loss weight [B] float, rows [B,2,C] or None.

    A mass is a share of the target's probability, which a class named in `classes` gets: masses are >= 0 and a sample's
    two sum to at most 1; a pair may name one class twice. `rows` are probabilities that replace the one-hot rows of
    `classes`; only `named_values` and `dense` read them. For images of any number of classes they are multi-hot, and go
    with binary cross-entropy alone.
    """

    classes: Tensor
    mass: Tensor
    weight: Tensor
    rows: Tensor | None = None


# ---- builders ----


def hard_target(labels: Tensor, weight: Tensor | None = None) -> SoftTarget:
    """Hard targets: all mass on integer `labels` [B]; `weight` [B], default ones. The second name repeats the first.

    ValueError for labels of another type or shape.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"labels must be integers of shape [B], found {labels.dtype} {tuple(labels.shape)}")
    one = torch.ones(len(labels), device=labels.device)
    classes = torch.stack([labels, labels], 1).long()
    return SoftTarget(classes, torch.stack([one, 0 * one], 1), one if weight is None else weight)


def smoothed(target: SoftTarget, smoothing: float | Tensor) -> SoftTarget:
    """Label smoothing (Szegedy et al. 2016, section 7): a share `smoothing` of each mass of `target` goes to the rest.

    `smoothing` in [0, 1), a number or a tensor ([] or [B,1]) that gradients reach; ValueError for a number outside.
    """
    if not isinstance(smoothing, Tensor) and not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing must be in [0, 1), found {smoothing}")
    return target._replace(mass=target.mass * (1 - smoothing))


def mixed_target(classes: Tensor, mass: Tensor, weights: Tensor) -> SoftTarget:
    """Pairs of classes, mass (shares) and loss weights, all [B,2], base first; `mixed_weight` joins the weights."""
    return SoftTarget(classes.long(), mass, mixed_weight(mass, weights))


def mixed_weight(mass: Tensor, weights: Tensor) -> Tensor:
    """Loss weight [B] of mixed samples: sum_j mass_j w_j / sum_j mass_j, the base's w where no mass is.

    As docs/crop_mix.md has it. `mass` (shares of the target) and `weights` (of each sample's two images): [B,2].
    """
    total = mass.sum(1)
    seen = total > 0
    mean = (mass * weights).sum(1) / torch.where(seen, total, 1)
    return torch.where(seen, mean, weights[:, 0])


def other_class_target(labels: Tensor, probability: Tensor, num_classes: int) -> SoftTarget:
    """Soft Augmentation's "other" class: `probability` [B] on the label, the rest on class C of C+1 outputs.

    `labels` [B] integers, `num_classes` C. Not to be mixed: a pair of samples would need three names.
    """
    check_num_classes(num_classes)
    hard = hard_target(labels)
    classes = torch.stack([labels.long(), torch.full_like(labels, num_classes, dtype=torch.int64)], 1)
    return SoftTarget(classes, torch.stack([probability, 1 - probability], 1), hard.weight)


# ---- masses from visibility ----


def softness(v: Tensor, k: float | Tensor) -> Tensor:
    """Softening curve s(v) = 1 - (1 - v)^k of visibility v in [0, 1] (1 above), a share (arXiv:2211.04625).

    Derivatives are finite: at v = 1 that in k is 0, and that in v is 0 where the curve is vertical (k < 1).
    """
    check_exponent(k)
    hidden = torch.where(v > 1, 0, 1 - v)  # not clamp: its derivative at the bounds is 0
    some = hidden > 0
    power = torch.where(some, hidden, 1) ** k  # the 1 keeps log(0) and 0^(k-1) out of the derivatives
    return 1 - torch.where(some, power, hidden * (k == 1))  # else 0, with the slope it has when k is 1


def soft_augmentation_mass(
    v: Tensor, k: float | Tensor, num_classes: int, p_max: float = 1.0, threshold: float = 1.0
) -> Tensor:
    """Mass of visibility v (any shape) with confidence p_max - (p_max - 1/C) ((T - v)/T)^k, p_max from T on.

    The softening of arXiv:2211.04625, in shares of 1: v of the image that is visible, `threshold` T of it from which on
    it counts as all, p_max the probability of the label then. `num_classes` C, `k` as in `softness`. ValueError for
    p_max outside of [1/C, 1] or T <= 0.
    """
    check_num_classes(num_classes)
    chance = 1 / num_classes
    if not chance <= p_max <= 1:
        raise ValueError(f"p_max must be in [1/C, 1] = [{chance:g}, 1], found {p_max}")
    if not threshold > 0:
        raise ValueError(f"threshold T must be > 0, found {threshold}")
    return (p_max - chance) / (1 - chance) * softness(v / threshold, k)


def mass_confidence(mass: Tensor, num_classes: int) -> Tensor:
    """Probability of the only named class, mass + (1 - mass)/C; also the loss weight of Soft Augmentation.

    `mass` of any shape, `num_classes` C; the result has the shape of `mass`.
    """
    check_num_classes(num_classes)
    return mass + (1 - mass) / num_classes


# ---- what a target says ----


def rest(target: SoftTarget) -> Tensor:
    """Mass of `target` left to the uniform part: [B]."""
    return 1 - target.mass.sum(1)


def merge_equal(target: SoftTarget) -> SoftTarget:
    """A pair of `target` that names one class twice becomes one mass: before anything nonlinear in the masses."""
    if target.rows is not None:  # two samples of a class differ in their rows: only `dense` adds those up
        return target
    same = target.classes[:, :1] == target.classes[:, 1:]
    total = target.mass.sum(1, keepdim=True)
    merged = torch.cat([total, torch.zeros_like(total)], 1)
    return target._replace(mass=torch.where(same, merged, target.mass))


def dense(target: SoftTarget, num_classes: int) -> Tensor:
    """The probabilities of `target` written out, for `num_classes` C: [B,C]."""
    rows = target.rows
    if rows is None:
        names = torch.arange(num_classes, device=target.classes.device)
        rows = (target.classes[:, :, None] == names).to(target.mass.dtype)
    return (target.mass[:, :, None] * rows).sum(1) + rest(target)[:, None] / num_classes


def probabilities(target: SoftTarget, num_classes: int) -> tuple[Tensor, Tensor]:
    """Probabilities that occur in `target` and how many classes have each: both [B,3]; [B,C] with rows.

    `num_classes` C.
    """
    if target.rows is not None:
        table = dense(target, num_classes)
        return table, torch.ones_like(table)
    uniform = (rest(target) / num_classes)[:, None]
    second = (target.classes[:, 0] != target.classes[:, 1]).to(uniform.dtype)
    counts = torch.stack([torch.ones_like(second), second, num_classes - 1 - second], 1)
    return torch.cat([merge_equal(target).mass + uniform, uniform], 1), counts


def confidence(target: SoftTarget, num_classes: int) -> Tensor:
    """Largest probability of each sample of `target`, rest included, of `num_classes` C: [B]."""
    return probabilities(target, num_classes)[0].amax(1)


# ---- cross-entropy ----


NO_MASS = 1e-6  # the masses of a pair are rounded: what is left of 1 by that is no mass


def share_of(mass: Tensor, values: Tensor) -> Tensor:
    """`mass` * `values`, but nothing of a value of -inf without mass: log 0 of a class that a target does not name.

    `mass`, a share of the target or of a soft label, and `values` are of any one shape, the result's too.
    """
    return mass * torch.where((mass.detach() <= NO_MASS) & (values.detach() == -torch.inf), 0, values)


def named_values(values: Tensor, target: SoftTarget) -> Tensor:
    """Mean of `values` [B,C] under each of the two named rows of `target`: [B,2]; a gather unless it has `rows`."""
    if target.rows is None:
        return values.gather(1, target.classes)
    return share_of(target.rows, values[:, None]).sum(-1)


def expectation(values: Tensor, target: SoftTarget) -> Tensor:
    """Mean of `values` [B,C] under `target`: [B]; the target is not written out."""
    named = share_of(target.mass, named_values(values, target))
    return named.sum(1) + share_of(rest(target), values.mean(1))


def log_probabilities(logits: Tensor, target: SoftTarget) -> Tensor:
    """log softmax (Bridle 1990) of logits [B,C], in nats, float32 or better; ValueError where `target` does not fit."""
    check_logits(logits, target)
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def reduce_losses(losses: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Reduces `losses` and `weight` [B] by `reduction`: "none" weight_i l_i, "sum" their sum, "mean" the sum / B.

    The mean is not over sum(weight): a batch of small weights takes a small step. ValueError for another reduction.
    """
    weighted = weight * losses
    if reduction == "none":
        return weighted
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean, sum or none, found {reduction!r}")
    return weighted.mean() if reduction == "mean" else weighted.sum()


def soft_cross_entropy(logits: Tensor, target: SoftTarget, reduction: Reduction = "mean") -> Tensor:
    """Weighted cross-entropy of `logits` [B,C] against `target`, in nats, float32 (float64 for float64 logits).

    `reduction` as in `reduce_losses`: a scalar, or [B] with "none". ValueError where logits and target do not fit.
    """
    losses = -expectation(log_probabilities(logits, target), target)
    return reduce_losses(losses, target.weight, reduction)


# ---- checks; the last two read values: for set-up and loaders, not the hot path ----


def check_num_classes(num_classes: int) -> None:
    """ValueError unless there are at least 2 classes, `num_classes`."""
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, found {num_classes}")


def check_logits(logits: Tensor, target: SoftTarget) -> None:
    """ValueError unless logits are [B,C] with the B of `target` and C >= 2."""
    if logits.ndim != 2 or len(logits) != len(target.classes):
        found = f"logits {tuple(logits.shape)}, classes {tuple(target.classes.shape)}"
        raise ValueError(f"logits must be [B,C] and the target of the same B, found {found}")
    check_num_classes(logits.shape[1])


def check_exponent(k: float | Tensor) -> None:
    """ValueError for a softening exponent `k` that is not > 0; a tensor of any shape is trusted: reading it waits."""
    if not isinstance(k, Tensor) and not k > 0:
        raise ValueError(f"the softening exponent k must be > 0, found {k}")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """ValueError unless `labels` (any shape) are integers in [0, C), C being `num_classes`."""
    check_num_classes(num_classes)
    if labels.is_floating_point():
        raise ValueError(f"labels must be integers, found {labels.dtype}")
    wrong = ((labels < 0) | (labels >= num_classes)).flatten().nonzero()
    if len(wrong):
        value, row = int(labels.flatten()[wrong[0]]), int(wrong[0])
        raise ValueError(f"label {value} (entry {row}) is not in [0, {num_classes}): fix it or num_classes")


def check_target(target: SoftTarget, num_classes: int, tolerance: float = 1e-5) -> None:
    """ValueError unless shapes of `target` fit, classes exist, masses and rows are probabilities, weights finite.

    `num_classes` C; sums of probabilities may be above 1 by `tolerance`. Weights are >= 0 too.
    """
    check_labels(target.classes, num_classes)
    batch = len(target.classes)
    wanted = {"classes": (batch, 2), "mass": (batch, 2), "weight": (batch,), "rows": (batch, 2, num_classes)}
    for name, shape in wanted.items():
        value = getattr(target, name)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, found {tuple(value.shape)}")
    mass, weight, rows = target.mass.detach(), target.weight.detach(), target.rows
    if not ((mass >= 0).all() and (mass.sum(1) <= 1 + tolerance).all()):
        raise ValueError(f"masses must be >= 0 and sum to <= 1, found {mass.min():g}, {mass.sum(1).max():g}")
    if not (weight.isfinite() & (weight >= 0)).all():
        raise ValueError(f"weights must be finite and >= 0, found {weight.min():g} to {weight.max():g}")
    if rows is not None and not ((rows >= 0).all() and ((rows.sum(-1) - 1).abs() <= tolerance).all()):
        raise ValueError("rows must be probabilities: >= 0 and summing to 1")

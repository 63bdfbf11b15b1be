"""Instant reweighting: loss weights and soft labels set anew in every update by how samples agree with validation.

Nothing is kept between updates, so no sample has to be visited often. Both follow from one derivative: with v the
validation gradient at the weights before the update, the cotangent along -v says by how much a sample's loss weight,
or the probability of a class in its label, would raise the validation loss (per unit of learning rate).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastaug.distributed import over_processes
from fastaug.hypergrad.problem import Cotangent
from fastaug.meta.learned_part import LearnedPart, Revision, Setting
from fastaug.targets import SoftTarget, dense


def with_rows(target: SoftTarget, classes: int) -> SoftTarget:
    """The same target written out as one row of probabilities per sample, so that a cotangent in the rows exists."""
    table = dense(target, classes)
    one = torch.ones(len(table), device=table.device)
    return SoftTarget(target.classes, torch.stack([one, 0 * one], 1), target.weight, torch.stack([table, table], 1))


def instant_weights(harm: Tensor, total: Callable[[Tensor], Tensor], *, even: bool = False) -> Tensor:
    """Weights [n] proportional to max(0, -harm), of mean 1 over all processes (Ren et al. 2018, eq. 8 and 9).

    `harm` [n]: derivative of the validation loss in each weight. Samples that harm get no weight; if all do, all have
    weight 0. A number that is not finite counts as harm, but if none is finite all have weight 1. `even`: all samples
    that help have the same weight, as SAFLEX's. `total` sums over processes.
    """
    known = harm.isfinite()
    help_ = torch.where(known, -harm, 0).clamp_min(0)
    help_ = (help_ > 0).to(help_) if even else help_
    figures = torch.stack([help_.sum(), known.sum().to(help_), help_.new_tensor(float(len(help_)))])
    summed, finite, count = total(figures)
    return torch.where(finite > 0, help_ * count / torch.where(summed > 0, summed, 1), 1)


def instant_labels(
    cotangent: Cotangent, target: SoftTarget, *, temperature: float, trust: float, total: Callable[[Tensor], Tensor]
) -> tuple[SoftTarget, Tensor]:
    """The target with soft labels that agree with the validation gradient, and the harm [n] of the samples so labelled.

    Row i maximises <gain_i + trust t_i, y> + temperature entropy(y) over probabilities y, whose solution is a softmax;
    gain is the cotangent in the rows for a sample of weight 1, sign turned, without its mean over classes and in units
    of its root mean square over all processes' samples (`total` sums over them); t_i the given target. After SAFLEX
    (Ding et al., ICLR 2024), whose weights are even among the samples whose harm is negative.

    The harm is that of the new label beyond that of an even one, 1 / classes each, in the same units: a sample is of
    use if its label is better than to say nothing. A sample whose cotangent is not finite keeps its label; harm NaN.
    `target` as `with_rows` gives it.
    """
    assert cotangent.rows is not None
    assert target.rows is not None
    weight, given = target.weight[:, None], target.rows[:, 0]
    slope = torch.where(weight > 0, cotangent.rows[:, 0] / torch.where(weight > 0, weight, 1), 0)
    known = slope.isfinite().all(1, keepdim=True)
    gain = torch.where(known, slope.mean(1, keepdim=True) - slope, 0)
    squares, count = total(torch.stack([gain.square().sum(), known.sum().to(gain) * gain.shape[1]]))
    scale = (squares / count.clamp_min(1)).sqrt()
    gain = gain / torch.where(scale > 0, scale, 1)
    rows = torch.where(known, torch.softmax((gain + trust * given) / temperature, 1), given)
    harm = torch.where(known[:, 0], -(gain * rows).sum(1), torch.nan)
    return target._replace(rows=torch.stack([rows, rows], 1)), harm


class InstantLabels(LearnedPart):
    """Instant soft labels, set anew in every training pass; settings meta.labels_temperature, meta.labels_trust."""

    instant = True

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.temperature, self.trust = setting.recipe.meta.labels_temperature, setting.recipe.meta.labels_trust

    def revise(self, revision: Revision) -> Revision:
        """The target with the labels of `instant_labels`, and their harm."""
        target, harm = instant_labels(
            revision.cotangent,
            revision.written,
            temperature=self.temperature,
            trust=self.trust,
            total=over_processes,
        )
        return revision._replace(target=target, harm=harm)


class InstantWeights(LearnedPart):
    """Instant loss weights, set anew in every training pass; even among samples that help, beside instant labels."""

    instant = True

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.even = "instant_labels" in setting.recipe.meta.learn

    def revise(self, revision: Revision) -> Revision:
        """The target with its weight times that of `instant_weights`."""
        weights = instant_weights(revision.harm, over_processes, even=self.even)
        target = revision.target._replace(weight=revision.target.weight * weights)
        return revision._replace(target=target, weights=weights)

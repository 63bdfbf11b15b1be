"""Loss weights and soft labels set anew in every update from how well each sample agrees with the validation gradient.

Nothing is kept between updates, so no sample has to be visited often. Both follow from one derivative: with v the
validation gradient at the weights before the update, the cotangent along -v says by how much a sample's loss weight,
or the probability of a class in its label, would raise the validation loss (per unit of learning rate).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastaug.hypergrad.problem import Cotangent
from fastaug.targets import SoftTarget, dense


def with_rows(target: SoftTarget, classes: int) -> SoftTarget:
    """The same target written out as one row of probabilities per sample, so that a cotangent in the rows exists."""
    table = dense(target, classes)
    one = torch.ones(len(table), device=table.device)
    return SoftTarget(target.classes, torch.stack([one, 0 * one], 1), target.weight, torch.stack([table, table], 1))


def instant_weights(harm: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights [n] proportional to max(0, -harm), of mean 1 over all processes (Ren et al. 2018, eq. 8 and 9).

    `harm` [n]: derivative of the validation loss in each weight. Samples that harm get no weight; if all do, all have
    weight 0. A number that is not finite counts as harm. `total` sums over processes.
    """
    help_ = torch.where(harm.isfinite(), -harm, 0).clamp_min(0)
    summed, count = total(torch.stack([help_.sum(), help_.new_tensor(float(len(help_)))]))
    return help_ * count / torch.where(summed > 0, summed, 1)


def instant_labels(
    cotangent: Cotangent, target: SoftTarget, *, temperature: float, trust: float
) -> tuple[SoftTarget, Tensor]:
    """The target with soft labels that agree with the validation gradient, and the harm [n] of the samples so labelled.

    Row i maximises <gain_i + trust t_i, y> + temperature entropy(y) over probabilities y, whose solution is a softmax;
    gain is the cotangent in the rows, sign turned, without its mean over classes and in units of its root mean square
    over the batch; t_i the given target. After SAFLEX (Ding et al., ICLR 2024), whose weights are 1 where the harm is
    negative and 0 elsewhere. `target` as `with_rows` gives it.
    """
    assert cotangent.rows is not None
    assert target.rows is not None
    slope = torch.nan_to_num(cotangent.rows[:, 0], nan=0.0, posinf=0.0, neginf=0.0)
    gain = slope.mean(1, keepdim=True) - slope
    scale = gain.square().mean().sqrt()
    gain = gain / torch.where(scale > 0, scale, 1)
    rows = torch.softmax((gain + trust * target.rows[:, 0]) / temperature, 1)
    return target._replace(rows=torch.stack([rows, rows], 1)), -(gain * rows).sum(1)

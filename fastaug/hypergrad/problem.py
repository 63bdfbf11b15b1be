"""What every engine gets and gives: one training loss, and how its gradient's product with a direction depends on it.

One update w' = U(w, g) of weights w with g = grad_w L(w; phi), and v = grad L_val(w'). The exact hypergradient of one
step is d L_val/d phi = d/d phi <u, g(w; phi)> with u = (dU/dg)^T v. phi acts on L through what `Samples` holds only:
images, masses, loss weights and rows of soft labels, and the probability of having drawn these operations. So an
engine returns the derivative of <u, g> in those, its `Cotangent`, and `pull_back` hands it on to any phi.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastaug.targets import SoftTarget

Weights = dict[str, Tensor]  # by the names of network.named_parameters(), those that are trained
Losses = Callable[[Tensor, SoftTarget], Tensor]  # logits [n, C], target -> weight_i l_i, [n]


class Samples(NamedTuple):
    """The n training samples that a meta step differentiates, as the network saw them.

    `images` [n, 3, S, S] and `target` may be on autograd's graph of the meta-parameters; `log_probability` [n] is that
    of the operations drawn for each sample, on the graph of their probabilities, or None.
    """

    images: Tensor
    target: SoftTarget
    log_probability: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """The training loss L(w) = sum_i losses_i / total of one update, differentiable any number of times.

    `network`: the bare module in training mode; engines leave its weights, buffers and .grad alone. `weights`: w before
    the update, not on any graph. `total`: samples of all processes that L is divided by. `seed`: of dropout masks in
    the forward pass, as in the update. `autocast`: opened around the forward pass.
    """

    network: nn.Module
    weights: Weights
    samples: Samples
    losses: Losses
    total: int
    seed: int = 0
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext


class Cotangent(NamedTuple):
    """d <u, grad_w L> / d (images, target.mass, target.weight, target.rows) of a Problem; shapes as theirs, float32.

    `images` is None unless asked for, `rows` where the target has none. target.weight * weight is each sample's own
    share of <u, grad_w L>: the first-order change of the validation loss that this sample is answerable for.
    """

    images: Tensor | None
    mass: Tensor
    weight: Tensor
    rows: Tensor | None


def pull_back(
    samples: Samples,
    cotangent: Cotangent,
    parameters: Sequence[Tensor],
    over_processes: Callable[[Tensor], Tensor] = lambda local: local,
) -> list[Tensor]:
    """The hypergradient in each of `parameters` from that in what they acted through; zeros where they did not act.

    Operations drawn at random count by their score function, share_i * grad log p_i, with the mean share as baseline
    (REINFORCE, Williams 1992). `over_processes` sums a tensor over all processes: the baseline is that of all samples.
    The result is this process's term; the caller adds them up.
    """
    pairs = [
        (samples.images, cotangent.images),
        (samples.target.mass, cotangent.mass),
        (samples.target.weight, cotangent.weight),
        (samples.target.rows, cotangent.rows),
    ]
    if samples.log_probability is not None:
        share = samples.target.weight.detach() * cotangent.weight
        summed = over_processes(torch.stack([share.sum(), share.new_tensor(len(share))]))
        pairs.append((samples.log_probability, share - summed[0] / summed[1]))
    reached = [(t, c.to(t.dtype)) for t, c in pairs if t is not None and c is not None and t.requires_grad]
    if not reached:
        return [torch.zeros_like(p) for p in parameters]
    outputs, gradients = zip(*reached, strict=True)
    found = torch.autograd.grad(outputs, list(parameters), gradients, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

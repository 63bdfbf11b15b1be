"""The derivative u = (dU/dg)^T v of a step not yet taken, approximately: for what the training pass itself learns.

dU/dg of SGD is known before g. Adam, AdamW and RMSprop divide by a root D of second moments, in which the coming g has
its share too. g is not known yet, but v is, a gradient of the same network: with D as the step would leave it if g were
v, made as large as gradients have been, u = -lr v / D but for a factor that all weights share. Without that share D is
next to nothing wherever gradients have been, in the first updates, in layers behind a factor that starts at zero, in
weights that were dead: u, and with it the whole hypergradient, would be these weights' alone. LAMB is taken for Adam,
without its trust ratios. Nobody who takes u in this form needs its length: tables, Adam and instant weights normalise.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

from fastaug.hypergrad.functional_updates import bare_optimizer
from fastaug.hypergrad.optimizer_jacobians.by_hand import Tensors, lifted
from fastaug.hypergrad.optimizer_jacobians.recorded_step import step_counts
from fastaug.hypergrad.problem import Weights


class Moments(NamedTuple):
    """The second moments that an optimizer keeps of some parameters, and how it divides by them.

    `squares`: mean squares of the gradients so far. `kept`: the share of each in that after the coming step. D is the
    root of the latter, `eps` added to it, or to the square if `inside`.
    """

    names: list[str]
    squares: Tensors
    kept: list[float]
    eps: float
    inside: bool


def direction_ahead(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]], v: Weights, *, approximate: bool = False
) -> Weights:
    """The direction u of the coming step, by name. `approximate`: -lr v, as for weights that have no moments yet."""
    bare, names = bare_optimizer(optimizer), {p: name for name, p in named_parameters}
    found: Weights = {}
    moments: list[Moments] = []
    for group in bare.param_groups:
        moved = [p for p in group["params"] if names.get(p) in v]
        if not moved:
            continue
        u = torch._foreach_mul([v[names[p]] for p in moved], -float(group["lr"]))
        found.update(zip((names[p] for p in moved), u, strict=True))
        known = [p for p in moved if bare.state.get(p)]
        if known and not approximate and (kept := _moments(bare, group, known, names)) is not None:
            moments.append(kept)
    for kept, roots in zip(moments, _roots_ahead(moments, v), strict=True):
        torch._foreach_div_([found[name] for name in kept.names], roots)
    return found


def _roots_ahead(moments: list[Moments], v: Weights) -> list[Tensors]:
    """D of each parameter after a step on v scaled to the root mean square that gradients have had."""
    if not moments:
        return []
    squares = [torch._foreach_pow(lifted([v[name] for name in kept.names]), 2) for kept in moments]
    so_far, present = (
        torch.stack([square.sum() for part in parts for square in part])
        for parts in ([kept.squares for kept in moments], squares)
    )
    scale = so_far.sum() / present.sum().clamp_min(torch.finfo(present.dtype).tiny)
    found = []
    for kept, expected in zip(moments, squares, strict=True):
        after = torch._foreach_mul(kept.squares, kept.kept)
        torch._foreach_mul_(expected, [1 - share for share in kept.kept])
        torch._foreach_addcmul_(after, expected, [scale] * len(kept.names))
        if kept.inside:
            torch._foreach_add_(after, kept.eps)
        torch._foreach_sqrt_(after)
        if not kept.inside:
            torch._foreach_add_(after, kept.eps)
        found.append(list(after))
    return found


def _moments(
    optimizer: Optimizer, group: dict[str, Any], parameters: Tensors, names: dict[Tensor, str]
) -> Moments | None:
    """The moments of parameters that have some; None where nothing is divided by."""
    states, eps = [optimizer.state[p] for p in parameters], float(group.get("eps", 0.0))
    named = [names[p] for p in parameters]
    if isinstance(optimizer, (RMSprop, RMSpropTF)):
        squares = lifted([s["square_avg"] for s in states])
        if group["centered"]:
            means = lifted([s["grad_avg"] for s in states])
            squares = list(torch._foreach_addcmul(squares, means, means, value=-1))
        inside = isinstance(optimizer, RMSpropTF)
        return Moments(named, squares, [float(group["alpha"])] * len(named), eps, inside)
    if isinstance(optimizer, (Adam, Lamb)):  # AdamW is an Adam to torch
        name = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
        steps, beta2 = step_counts(optimizer, group, parameters), float(group["betas"][1])
        corrected = group.get("bias_correction", True)
        past, next_ = ([1 - beta2 ** (t + more) if corrected else 1.0 for t in steps] for more in (0, 1))
        squares = list(torch._foreach_mul(lifted([s[name] for s in states]), [1 / c for c in past]))
        return Moments(named, squares, [beta2 * c / d for c, d in zip(past, next_, strict=True)], eps, False)
    return None

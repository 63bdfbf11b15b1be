"""The derivative u = (dU/dg)^T v of a step not yet taken, approximately: for what the training pass itself learns.

dU/dg of SGD is known before g. Adam, AdamW and RMSprop divide by a root D of second moments to which one g adds little:
with D as the last step left it, u = -lr v / D but for a factor that all weights share. LAMB is taken for Adam, without
its trust ratios. Nobody who takes u in this form needs its length: tables, Adam and instant weights normalise.
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from torch import Tensor
from torch.optim import Adam, Optimizer, RMSprop

from fastaug.hypergrad.functional_updates import bare_optimizer
from fastaug.hypergrad.optimizer_jacobians.by_hand import Tensors, lifted
from fastaug.hypergrad.optimizer_jacobians.recorded_step import step_counts
from fastaug.hypergrad.problem import Weights


def direction_ahead(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]], v: Weights, *, approximate: bool = False
) -> Weights:
    """The direction u of the coming step, by name. `approximate`: -lr v, as for weights that have no moments yet."""
    bare, names = bare_optimizer(optimizer), {p: name for name, p in named_parameters}
    found: Weights = {}
    for group in bare.param_groups:
        moved = [p for p in group["params"] if names.get(p) in v]
        if not moved:
            continue
        u = list(torch._foreach_mul([v[names[p]] for p in moved], -float(group["lr"])))
        known = [i for i, p in enumerate(moved) if bare.state.get(p)]
        if known and not approximate and (roots := _roots(bare, group, [moved[i] for i in known])) is not None:
            torch._foreach_div_([u[i] for i in known], roots)
        found.update(zip((names[p] for p in moved), u, strict=True))
    return found


def _roots(optimizer: Optimizer, group: dict[str, Any], parameters: Tensors) -> Tensors | None:
    """D of each parameter in the optimizer's present state; None where nothing is divided by."""
    states, eps = [optimizer.state[p] for p in parameters], float(group.get("eps", 0.0))
    if isinstance(optimizer, (RMSprop, RMSpropTF)):
        squares = lifted([s["square_avg"] for s in states])
        if group["centered"]:
            means = lifted([s["grad_avg"] for s in states])
            squares = list(torch._foreach_addcmul(squares, means, means, value=-1))
        if isinstance(optimizer, RMSpropTF):
            return list(torch._foreach_sqrt(torch._foreach_add(squares, eps)))
        return list(torch._foreach_add(torch._foreach_sqrt(squares), eps))
    if isinstance(optimizer, (Adam, Lamb)):  # AdamW is an Adam to torch
        name = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
        corrected, beta2 = group.get("bias_correction", True), float(group["betas"][1])
        roots = list(torch._foreach_sqrt(lifted([s[name] for s in states])))
        steps = step_counts(optimizer, group, parameters)
        torch._foreach_mul_(roots, [(1 - beta2**t) ** -0.5 if corrected else 1.0 for t in steps])
        torch._foreach_add_(roots, eps)
        return roots
    return None

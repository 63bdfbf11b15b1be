"""Derivatives of optimizer updates in the gradient by hand: two to six times faster than autograd through them.

u = (dU/dg)^T q for one parameter group, q = dL_val/dw' and g the gradient that the optimizer got. The state is that
after the step, so that nothing but weights and gradients has to be kept from before it. By `_foreach` operations: a few
launches per group.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastaug.hypergrad.functional_updates import lamb_by_ratio

Tensors = list[Tensor]


class GroupStep(NamedTuple):
    """A parameter group in one optimizer step: those of its parameters that had a gradient.

    `settings`: the group's hyperparameters in this step. `weights`: before the step. `gradients`: as they entered the
    update, empty where nobody needs them. `first`: whether this step makes the momentum buffer. `before`: copies of the
    states before the step, empty where nobody needs them. `steps` taken and `states`, those of optimizer.state, are
    filled in after the step.
    """

    names: list[str]
    parameters: Tensors
    settings: dict[str, Any]
    weights: Tensors
    gradients: Tensors
    first: list[bool]
    before: list[dict[str, Any]]
    steps: list[float]
    states: list[dict[str, Any]]

    def state(self, name: str) -> Tensors:
        """The state tensors called `name`, one a parameter, upcast to float32."""
        return lifted([state[name] for state in self.states])

    def pieces(self, q: Tensors, most: int = 1 << 21) -> Iterator[tuple["GroupStep", Tensors]]:
        """The same step and `q` in runs of parameters with about `most` numbers, whose temporaries stay in a cache."""
        start, size = 0, 0
        for end, tensor in enumerate(q, 1):
            size += tensor.numel()
            if size >= most or end == len(q):
                part = slice(start, end)
                lists = {name: getattr(self, name)[part] for name in self._fields if name != "settings"}
                yield self._replace(**lists), q[part]
                start, size = end, 0


def lifted(tensors: Sequence[Tensor]) -> Tensors:
    """The tensors upcast to float32, or as they are where they are wider."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def gradient_descent_direction(step: GroupStep, q: Tensors) -> Tensors:
    """u = -lr q: of w' = w - lr g, or in place of an update that is not known."""
    return list(torch._foreach_mul(q, -float(step.settings["lr"])))


# ---- SGD and SGDW: w' = w - lr d, with d = G, the momentum buffer, or (Nesterov) G + momentum * buffer


def sgd_direction(step: GroupStep, q: Tensors) -> Tensors:
    """u of SGD and SGDW: dU/dg is a number per parameter, so neither gradients nor state are read: one pass over q."""
    lr, momentum, dampening = (float(step.settings[name]) for name in ("lr", "momentum", "dampening"))
    slopes = [1.0] * len(step.names)
    if momentum:  # the first step puts G itself into the buffer, whatever the dampening
        slopes = [1.0 if first else 1 - dampening for first in step.first]
        if step.settings["nesterov"]:
            slopes = [1 + momentum * slope for slope in slopes]
    return torch._foreach_mul(q, [-lr * slope for slope in slopes])  # type: ignore[return-value]


# ---- steps that divide by a root of second moments: w' = w - lr N/D with N and D elementwise functions of G, the
# gradient with its coupled weight decay; d(N/D)/dG = (N' - (N/D) D')/D


class Ratio(NamedTuple):
    """Numerators N = over_scale over and denominators D = under, with their derivatives; scales are numbers.

    dN/dG = over_slope, dD/dG = under_scale bend.
    """

    over: Tensors
    over_scale: list[float]
    over_slope: list[float]
    under: Tensors
    bend: Tensors
    under_scale: list[float]

    def value(self) -> Tensors:
        """N/D."""
        ratios = list(torch._foreach_div(self.over, self.under))
        torch._foreach_mul_(ratios, self.over_scale)
        return ratios

    def pulled(self, q: Tensors, factor: float) -> Tensors:
        """factor d(N/D)/dG q."""
        found = list(torch._foreach_div(self.over, self.under))
        torch._foreach_mul_(found, self.bend)
        scales = zip(self.over_scale, self.under_scale, strict=True)
        torch._foreach_mul_(found, [-factor * over * under for over, under in scales])
        torch._foreach_add_(found, [factor * slope for slope in self.over_slope])
        torch._foreach_div_(found, self.under)
        torch._foreach_mul_(found, q)
        return found


def adam_direction(step: GroupStep, q: Tensors) -> Tensors:
    """u of Adam and AdamW, amsgrad included."""
    coupled = not step.settings["decoupled_weight_decay"]
    ratio = _adam_ratio(step, _decayed_gradients(step) if coupled else step.gradients)
    return ratio.pulled(q, -float(step.settings["lr"]))


def lamb_direction(step: GroupStep, q: Tensors) -> Tensors:
    """u of LAMB: Adam's ratio by hand, decay and trust ratio through their definition."""
    ratio = _adam_ratio(step, step.gradients)
    values, weights = [value.requires_grad_() for value in ratio.value()], lifted(step.weights)
    with torch.enable_grad():
        moved = [lamb_by_ratio(w, value, step.settings) for w, value in zip(weights, values, strict=True)]
    return ratio.pulled(list(torch.autograd.grad(moved, values, q)), 1.0)


def rmsprop_direction(step: GroupStep, q: Tensors) -> Tensors:
    """u of torch's RMSprop: N = G, D = sqrt(s - mean^2) + eps; with momentum N/D is added to a constant."""
    return _rmsprop(step, q, eps_inside=False)


def rmsprop_tf_direction(step: GroupStep, q: Tensors) -> Tensors:
    """u of timm's RMSprop: N = G, D = sqrt(s - mean^2 + eps)."""
    return _rmsprop(step, q, eps_inside=True)


def _rmsprop(step: GroupStep, q: Tensors, eps_inside: bool) -> Tensors:
    settings = step.settings
    gradients = step.gradients if settings.get("decoupled_decay") else _decayed_gradients(step)
    squares, slope = step.state("square_avg"), gradients
    if settings["centered"]:
        means = step.state("grad_avg")
        squares = list(torch._foreach_addcmul(squares, means, means, value=-1))
        slope = list(torch._foreach_sub(gradients, means))
    eps, count = float(settings["eps"]), len(q)
    roots = _safe_roots(list(torch._foreach_add(squares, eps)) if eps_inside else squares)
    under = roots if eps_inside else list(torch._foreach_add(roots, eps))
    bend = list(torch._foreach_div(slope, roots))
    ratio = Ratio(gradients, [1.0] * count, [1.0] * count, under, bend, [1 - float(settings["alpha"])] * count)
    return ratio.pulled(q, -float(settings["lr"]))


def _adam_ratio(step: GroupStep, gradients: Tensors) -> Ratio:
    """N = m/c1 and D = sqrt(s/c2) + eps, with the moments m and s after the step and c = 1 - beta^t."""
    settings = step.settings
    beta1, beta2 = (float(b) for b in settings["betas"])
    corrected = settings.get("bias_correction", True)
    c1 = [1 - beta1**t if corrected else 1.0 for t in step.steps]
    c2 = [1 - beta2**t if corrected else 1.0 for t in step.steps]
    fresh = 1 - beta1 if settings.get("grad_averaging", True) else 1.0
    amsgrad, squares = settings.get("amsgrad", False), step.state("exp_avg_sq")
    largest = step.state("max_exp_avg_sq") if amsgrad else squares
    roots = _safe_roots(largest)
    under = list(torch._foreach_mul(roots, [c**-0.5 for c in c2]))
    torch._foreach_add_(under, float(settings["eps"]))
    bend = list(torch._foreach_div(gradients, roots))
    if amsgrad:  # the largest square moves with the gradient where it is the present one
        torch._foreach_mul_(bend, [(a == b).to(a.dtype) for a, b in zip(squares, largest, strict=True)])
    return Ratio(
        over=step.state("exp_avg"),
        over_scale=[1 / c for c in c1],
        over_slope=[fresh / c for c in c1],
        under=under,
        bend=bend,
        under_scale=[(1 - beta2) * c**-0.5 for c in c2],
    )


def _decayed_gradients(step: GroupStep) -> Tensors:
    """G = g + weight_decay w."""
    decay = float(step.settings["weight_decay"])
    return list(torch._foreach_add(step.gradients, lifted(step.weights), alpha=decay)) if decay else step.gradients


def _safe_roots(squares: Tensors) -> Tensors:
    """Square roots with those of 0 replaced by a tiny number: what is divided by them is 0 there."""
    found = list(torch._foreach_sqrt(squares))
    torch._foreach_clamp_min_(found, float(torch.finfo(torch.float32).tiny) ** 0.5)
    return found

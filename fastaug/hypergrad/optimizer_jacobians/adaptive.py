"""Derivatives of the steps that divide by a root of second moments: Adam, AdamW, RMSprop, LAMB.

All are w' = w - lr N/D (LAMB: times a trust ratio) with N and D elementwise functions of G, the gradient with its
coupled weight decay: d(N/D)/dG = (N' - (N/D) D')/D. By `_foreach` operations: a few launches per group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastaug.hypergrad.optimizer_jacobians.sgd import GroupStep, Tensors, inner, lifted


class Ratio(NamedTuple):
    """N = over_scale over and D, with dN/dG = over_slope and dD/dG = under_scale bend; scales are numbers."""

    over: Tensors
    over_scale: list[float]
    over_slope: list[float]
    under: Tensors
    bend: Tensors
    under_scale: list[float]

    def value(self) -> Tensors:
        """N/D."""
        found = list(torch._foreach_div(self.over, self.under))
        torch._foreach_mul_(found, self.over_scale)
        return found

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


def decayed_gradients(step: GroupStep) -> Tensors:
    """G = g + weight_decay w."""
    decay = float(step.settings["weight_decay"])
    return list(torch._foreach_add(step.gradients, lifted(step.weights), alpha=decay)) if decay else step.gradients


def safe_roots(squares: Tensors) -> Tensors:
    """Square roots with those of 0 replaced by a tiny number: what is divided by them is 0 there."""
    found = list(torch._foreach_sqrt(squares))
    torch._foreach_clamp_min_(found, float(torch.finfo(torch.float32).tiny) ** 0.5)
    return found


# ---- Adam and AdamW (Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2), amsgrad included


class AdamTerms(NamedTuple):
    """c1, c2 = 1 - beta^t and their derivatives in beta; G; the second moments divided by, and which of them move."""

    c1: list[float]
    c2: list[float]
    c1_slope: list[float]
    c2_slope: list[float]
    gradients: Tensors
    squares: Tensors
    moving: Tensors | None


def adam_terms(step: GroupStep) -> AdamTerms:
    beta1, beta2 = (float(b) for b in step.settings["betas"])
    corrected = step.settings.get("bias_correction", True)
    c1 = [1 - beta1**t if corrected else 1.0 for t in step.steps]
    c2 = [1 - beta2**t if corrected else 1.0 for t in step.steps]
    s1 = [-t * beta1 ** (t - 1) for t in step.steps]
    s2 = [-t * beta2 ** (t - 1) for t in step.steps]
    coupled = not step.settings.get("decoupled_weight_decay", False)
    gradients = decayed_gradients(step) if coupled else step.gradients
    squares, moving = step.state("exp_avg_sq"), None
    if step.settings.get("amsgrad"):
        largest = step.state("max_exp_avg_sq")
        moving = [(a == b).to(a.dtype) for a, b in zip(squares, largest, strict=True)]
        squares = largest
    return AdamTerms(c1, c2, s1, s2, gradients, squares, moving)


def adam_ratio(step: GroupStep, terms: AdamTerms) -> Ratio:
    """N = m/c1 and D = sqrt(s/c2) + eps, with m and s after the step."""
    beta1, beta2 = (float(b) for b in step.settings["betas"])
    fresh = 1 - beta1 if step.settings.get("grad_averaging", True) else 1.0
    roots = safe_roots(terms.squares)
    under = list(torch._foreach_mul(roots, [c**-0.5 for c in terms.c2]))
    torch._foreach_add_(under, float(step.settings["eps"]))
    bend = list(torch._foreach_div(terms.gradients, roots))
    if terms.moving is not None:
        torch._foreach_mul_(bend, terms.moving)
    return Ratio(
        over=step.state("exp_avg"),
        over_scale=[1 / c for c in terms.c1],
        over_slope=[fresh / c for c in terms.c1],
        under=under,
        bend=bend,
        under_scale=[(1 - beta2) * c**-0.5 for c in terms.c2],
    )


def adam_direction(step: GroupStep, q: Tensors) -> Tensors:
    """-lr d(N/D)/dG q."""
    return adam_ratio(step, adam_terms(step)).pulled(q, -float(step.settings["lr"]))


def adam_hyperparameters(step: GroupStep, q: Tensors) -> dict[str, Tensor]:
    """<q, dU/dh> for lr, beta1, beta2 and weight_decay."""
    lr, decay = float(step.settings["lr"]), float(step.settings["weight_decay"])
    beta1, beta2 = (float(b) for b in step.settings["betas"])
    if beta1 == 0 or beta2 == 0:
        raise ValueError(f"betas {beta1:g}, {beta2:g}: the derivative in a beta of 0 needs the moments that it erased")
    terms = adam_terms(step)
    ratio = adam_ratio(step, terms)
    weights, value, along = lifted(step.weights), ratio.value(), list(torch._foreach_div(q, ratio.under))  # N/D, q/D
    decoupled = step.settings.get("decoupled_weight_decay", False)
    # dm/dbeta1 = m_old - G = (m - G)/beta1, and the same for s: the old moments are those after the step, taken back.
    by_moment = list(torch._foreach_sub(ratio.over, terms.gradients))
    torch._foreach_mul_(by_moment, [scale / beta1 for scale in ratio.over_scale])
    torch._foreach_sub_(
        by_moment, torch._foreach_mul(ratio.over, [d / c**2 for c, d in zip(terms.c1, terms.c1_slope, strict=True)])
    )
    by_under = torch._foreach_mul(value, _under_in_beta2(step, terms, beta2))
    return {
        "lr": -inner(q, value) - (decay * inner(q, weights) if decoupled else 0),
        "beta1": -lr * inner(along, by_moment),
        "beta2": lr * inner(along, list(by_under)),
        "weight_decay": inner(q, weights).mul(-lr) if decoupled else inner(ratio.pulled(q, -lr), weights),
    }


def _under_in_beta2(step: GroupStep, terms: AdamTerms, beta2: float) -> Tensors:
    """dD/dbeta2 = [ds/dbeta2 / c2 - s c2'/c2^2] / (2 sqrt(s/c2)); 0 where s is."""
    found = list(torch._foreach_sub(step.state("exp_avg_sq"), torch._foreach_mul(terms.gradients, terms.gradients)))
    torch._foreach_div_(found, beta2)
    if terms.moving is not None:
        torch._foreach_mul_(found, terms.moving)
    shares = [s / c for s, c in zip(terms.c2_slope, terms.c2, strict=True)]
    torch._foreach_sub_(found, torch._foreach_mul(terms.squares, shares))
    torch._foreach_div_(found, safe_roots(terms.squares))
    torch._foreach_div_(found, [2 * c**0.5 for c in terms.c2])
    return found


# ---- RMSprop (Hinton's lecture 6e) as torch has it, and timm's with eps inside the root


def rmsprop_direction(step: GroupStep, q: Tensors) -> Tensors:
    """N = G, D = sqrt(s - mean^2) + eps; with momentum the step ends in the same N/D, added to a constant."""
    return _rmsprop(step, q, eps_inside=False)


def rmsprop_tf_direction(step: GroupStep, q: Tensors) -> Tensors:
    """N = G, D = sqrt(s - mean^2 + eps)."""
    return _rmsprop(step, q, eps_inside=True)


def _rmsprop(step: GroupStep, q: Tensors, eps_inside: bool) -> Tensors:
    settings = step.settings
    gradients = step.gradients if settings.get("decoupled_decay") else decayed_gradients(step)
    squares, slope = step.state("square_avg"), gradients
    if settings["centered"]:
        means = step.state("grad_avg")
        squares = list(torch._foreach_addcmul(squares, means, means, value=-1))
        slope = list(torch._foreach_sub(gradients, means))
    eps, count = float(settings["eps"]), len(q)
    roots = safe_roots(list(torch._foreach_add(squares, eps)) if eps_inside else squares)
    under = roots if eps_inside else list(torch._foreach_add(roots, eps))
    bend = list(torch._foreach_div(slope, roots))
    ratio = Ratio(gradients, [1.0] * count, [1.0] * count, under, bend, [1 - float(settings["alpha"])] * count)
    return ratio.pulled(q, -float(settings["lr"]))


# ---- LAMB (You et al. 2020, algorithm 2) as timm has it


def lamb_direction(step: GroupStep, q: Tensors) -> Tensors:
    """w' = w - lr r p with p = N/D (+ weight_decay w) and the trust ratio r = |w|/|p| of each tensor.

    dL/dp = -lr r (q - p <p, q>/|p|^2); r is the constant 1 where a norm is 0 or the ratio is clipped or not in use.
    """
    settings, weights = step.settings, lifted(step.weights)
    lr, decay, decoupled = float(settings["lr"]), float(settings["weight_decay"]), settings.get("decoupled_decay")
    ratio = adam_ratio(step, adam_terms(step._replace(settings={**settings, "decoupled_weight_decay": True})))
    through = q
    if decay or settings["always_adapt"]:
        updates = ratio.value()
        if decay and decoupled:
            scale = lr**2 / settings["max_lr_snapshot"] if settings.get("corrected_weight_decay") else lr
            weights = list(torch._foreach_mul(weights, 1 - scale * decay))
        elif decay:
            torch._foreach_add_(updates, weights, alpha=decay)
        through = [
            _through_trust(t, p, w, settings["trust_clip"]) for t, p, w in zip(through, updates, weights, strict=True)
        ]
    return ratio.pulled(through, -lr)


def _through_trust(q: Tensor, update: Tensor, weight: Tensor, clipped: bool) -> Tensor:
    """d<q, r p>/dp for one tensor."""
    length, size = update.norm(), weight.norm()
    adapts = (length > 0) & (size > 0)
    ratio = torch.where(adapts, size / torch.where(adapts, length, 1), 1)
    if clipped:
        adapts = adapts & (ratio < 1)
        ratio = ratio.clamp(max=1)
    along = torch.where(adapts, (q * update).sum() / torch.where(adapts, length, 1) ** 2, 0)
    return ratio * (q - along * update)

"""u = (dU/dg)^T v of the step w' = U(w, g) that the optimizer really took, and <v, dU/dh> of its hyperparameters h.

The step is recorded between gradient clipping and `optimizer.step()`; afterwards its derivatives come from the record
and the optimizer's state, without another pass through the network. Where an exponential average of the weights is
validated, `through_average` leads back to the step's own weights.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from timm.optim.sgdw import SGDW
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad.optimizer_jacobians.adaptive import (
    adam_direction,
    adam_hyperparameters,
    lamb_direction,
    rmsprop_direction,
    rmsprop_tf_direction,
)
from fastaug.hypergrad.optimizer_jacobians.sgd import (
    GroupStep,
    Rule,
    Tensors,
    cautious,
    inner,
    lifted,
    maximizes,
    sgd_direction,
    sgd_hyperparameters,
)
from fastaug.hypergrad.problem import Weights

RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(False, maximizes, sgd_direction, sgd_hyperparameters),
    SGDW: Rule(False, cautious, sgd_direction),
    Adam: Rule(True, maximizes, adam_direction, adam_hyperparameters),
    AdamW: Rule(True, maximizes, adam_direction, adam_hyperparameters),
    RMSprop: Rule(True, maximizes, rmsprop_direction),
    RMSpropTF: Rule(True, cautious, rmsprop_tf_direction),
    Lamb: Rule(True, cautious, lamb_direction),
}


def _identity_direction(step: GroupStep, q: Tensors) -> Tensors:
    return list(torch._foreach_mul(q, -float(step.settings["lr"])))


IDENTITY = Rule(False, lambda _: None, _identity_direction)


def rule_of(optimizer: Optimizer, approximate: bool = False) -> Rule:
    """How steps of `optimizer` are differentiated; ValueError where that is not known and not `approximate`."""
    optimizer = bare_optimizer(optimizer)
    if approximate:
        return IDENTITY
    rule = RULES.get(type(optimizer))
    remedy = "or declare the approximation u = -lr v with approximate=True"
    if rule is None:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise ValueError(f"the step of {type(optimizer).__name__} cannot be differentiated; use {known}, {remedy}")
    for group in optimizer.param_groups:
        if (reason := rule.refusal(group)) is not None:
            raise ValueError(
                f"the step of {type(optimizer).__name__} with {reason} cannot be differentiated; turn it off, {remedy}"
            )
    return rule


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper, which holds the state."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


class Clip(NamedTuple):
    """Clipping by global norm as the optimizer's gradient saw it: g -> scale g, whose transposed derivative is

    q -> scale (q - pull g <g, q>/|g|^2). `length` is the norm after clipping. All are scalars.
    """

    scale: Tensor
    pull: Tensor
    length: Tensor


def _clip(norm: Tensor, max_norm: float, margin: float) -> Clip:
    """g max_norm/(norm + margin) where that shrinks g. No host sync."""
    scale = max_norm / (norm + margin)
    active = scale < 1
    scale = torch.where(active, scale, 1)
    return Clip(scale, torch.where(active, norm / (norm + margin), 0), scale * norm)


def _joined(outer: Clip, inside: Clip) -> Clip:
    """`outer`, then `inside`: both pull along the same g."""
    return Clip(outer.scale * inside.scale, 1 - (1 - outer.pull) * (1 - inside.pull), inside.length)


@dataclass(frozen=True)
class RecordedStep:
    """One step of an optimizer, from before it is taken; `weights` are copies of w, trained parameters only."""

    weights: Weights
    rule: Rule
    clip: Clip | None
    _optimizer: Optimizer
    _groups: list[GroupStep]
    _hyperparameters: bool

    def direction(self, v: Weights) -> Weights:
        """u = (dU/dg)^T v by the names of v, g before clipping; 0 where a parameter had no gradient.

        To be asked after optimizer.step() and before the next one. Cost without clipping: SGD one pass over v, Adam
        about a dozen; clipping adds two.
        """
        found: Weights = {}
        for group in self._after(v):
            for piece, q in group.pieces(lifted([v[name] for name in group.names])):
                found.update(zip(piece.names, self.rule.direction(piece, q), strict=True))
        if self.clip is not None and found:
            gradients = [g for group in self._groups for g in group.gradients]
            u, clip = list(found.values()), self.clip
            along = clip.scale * clip.pull * inner(gradients, u) / clip.length.clamp_min(1e-15) ** 2
            u = torch._foreach_mul(u, clip.scale)  # type: ignore[assignment]
            torch._foreach_sub_(u, torch._foreach_mul(gradients, along))
            found = dict(zip(found, u, strict=True))
        return {name: found[name] if name in found else torch.zeros_like(v[name]) for name in self.weights}

    def hyperparameter_gradients(self, v: Weights) -> list[dict[str, Tensor]]:
        """<v, dU/dh>, scalars by the name of h, for each parameter group of the optimizer.

        SGD: lr, weight_decay, momentum (where it is not 0); Adam, AdamW: lr, weight_decay, beta1, beta2.
        """
        if not self._hyperparameters:
            raise ValueError("this step was recorded for u alone; pass hyperparameters=True to record_step")
        assert self.rule.hyperparameters is not None
        found = []
        for group in self._after(v):
            q = lifted([v[name] for name in group.names])
            pieces = [self.rule.hyperparameters(piece, part) for piece, part in group.pieces(q)]
            found.append({h: torch.stack([piece[h] for piece in pieces]).sum() for h in (pieces[0] if pieces else {})})
        return found

    def _after(self, v: Weights) -> list[GroupStep]:
        """The groups with the state after the step; ValueError when it was not taken, or another one after it."""
        if set(v) != set(self.weights):
            odd = sorted(set(v) ^ set(self.weights))
            raise ValueError(f"v and the recorded weights differ in {len(odd)} names: {', '.join(odd[:5])}")
        groups = []
        for group, live in zip(self._groups, self._optimizer.param_groups, strict=True):
            steps = [count + 1 for count in group.steps]
            counted = step_counts(self._optimizer, live, group.parameters)
            if self.rule.uses_gradients and counted != steps:
                raise ValueError(
                    f"the optimizer has taken {max(counted):g} steps and {max(steps):g} were expected: ask between the "
                    "recorded optimizer.step() and the next one, and not where fp16 loss scaling skipped it"
                )
            states = [self._optimizer.state.get(p, {}) for p in group.parameters]
            groups.append(group._replace(steps=steps, states=states))
        return groups


def record_step(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    *,
    norm: Tensor | None = None,
    max_norm: float | None = None,
    hyperparameters: bool = False,
    approximate: bool = False,
) -> RecordedStep:
    """Keeps what differentiating the coming step needs; call it after gradient clipping, before optimizer.step().

    Copies the trained weights, and the gradients (of all processes, loss scale taken off) where clipping, the optimizer
    or `hyperparameters` need them. `norm`: that of the gradients before clipping to `max_norm` (clip_grad_norm_ returns
    it); None: not clipped. `approximate`: u = -lr v whatever the optimizer. A step that loss scaling skips
    (accelerator.optimizer_step_was_skipped) has no hypergradient: drop the record. ValueError: see `rule_of`.
    """
    rule, bare = rule_of(optimizer, approximate), bare_optimizer(optimizer)
    if hyperparameters and rule.hyperparameters is None:
        known = ", ".join(kind.__name__ for kind, other in RULES.items() if other.hyperparameters)
        raise ValueError(f"hyperparameters of {type(bare).__name__} have no gradient here; use {known}")
    clip = None
    if max_norm is not None and max_norm != math.inf:
        if norm is None or not max_norm > 0:
            raise ValueError(f"clipping to {max_norm} needs max_norm > 0 and the norm before it, found norm {norm}")
        clip = _clip(norm.detach(), max_norm, margin=1e-6)  # as torch.nn.utils.clip_grad_norm_
    names = {p: name for name, p in named_parameters if p.requires_grad}
    unnamed = sum(p.requires_grad and p not in names for group in bare.param_groups for p in group["params"])
    if unnamed:
        raise ValueError(f"{unnamed} of the optimizer's parameters are not among named_parameters; name all of them")
    keeps = rule.uses_gradients or hyperparameters or clip is not None
    weights = {name: p.detach().clone() for p, name in names.items()}
    groups = [_record_group(bare, group, names, weights, keeps) for group in bare.param_groups]
    if isinstance(bare, Lamb) and rule is not IDENTITY and bare.defaults["max_grad_norm"] is not None:
        groups, clip = _clipped_by_lamb(groups, bare.defaults["max_grad_norm"], clip)
    return RecordedStep(weights, rule, clip, bare, groups, hyperparameters)


def _record_group(
    optimizer: Optimizer, group: dict[str, Any], names: dict[Tensor, str], weights: Weights, keeps: bool
) -> GroupStep:
    moved = [p for p in group["params"] if p.grad is not None]
    kept = [names[p] for p in moved]
    return GroupStep(
        names=kept,
        parameters=moved,
        settings={name: value for name, value in group.items() if name != "params"},
        weights=[weights[name] for name in kept],
        # Copies: a foreach SGD with Nesterov momentum changes .grad in place.
        gradients=[g.clone() for g in lifted([p.grad for p in moved])] if keeps else [],
        first=[optimizer.state.get(p, {}).get("momentum_buffer") is None for p in moved],
        steps=step_counts(optimizer, group, moved),
        states=[],
    )


def _clipped_by_lamb(groups: list[GroupStep], max_norm: float, clip: Clip | None) -> tuple[list[GroupStep], Clip]:
    """timm's LAMB clips once more, by the norm of all its gradients, before its moments see them."""
    inside = _clip(get_total_norm([g for group in groups for g in group.gradients]), max_norm, margin=0.0)
    scaled = [
        group._replace(gradients=list(torch._foreach_mul(group.gradients, inside.scale))) if group.names else group
        for group in groups
    ]
    return scaled, inside if clip is None else _joined(clip, inside)


def step_counts(optimizer: Optimizer, group: dict[str, Any], parameters: Tensors) -> list[float]:
    """Steps taken so far by each parameter; 0 where the optimizer does not count."""
    counts = [optimizer.state.get(p, {}).get("step", group.get("step", 0)) for p in parameters]
    return torch.stack([torch.as_tensor(count, dtype=torch.float64) for count in counts]).tolist() if counts else []


def through_average(gradient: Weights, decay: float) -> Weights:
    """v of the step's weights from the gradient in their exponential average after it, of factor `decay`.

    average' = decay average + (1 - decay) w', so v = (1 - decay) gradient.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"the decay of averaged weights must be in [0, 1), found {decay}")
    return dict(zip(gradient, torch._foreach_mul(list(gradient.values()), 1 - decay), strict=True))

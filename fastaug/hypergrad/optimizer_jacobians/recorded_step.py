"""Derivatives of the step that the optimizer really took, w' = U(w, g): in its gradient and in its hyperparameters.

u = (dU/dg)^T v is what hypergradients are made of, written out by hand; <v, dU/dh> of hyperparameters h goes through
the update's definition (functional_updates.py) by autograd.
The step is recorded between gradient clipping and `optimizer.step()`; afterwards its derivatives come from the record
and the optimizer's state, without another pass through the network. Where an exponential average of the weights is
validated, `through_average` leads back to the step's own weights.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from timm.optim.sgdw import SGDW
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad.functional_updates import (
    Update,
    bare_optimizer,
    group_settings,
    own_clipping,
    present_state,
    update_of,
)
from fastaug.hypergrad.optimizer_jacobians.by_hand import (
    GroupStep,
    Tensors,
    adam_direction,
    gradient_descent_direction,
    lamb_direction,
    lifted,
    rmsprop_direction,
    rmsprop_tf_direction,
    sgd_direction,
)
from fastaug.hypergrad.problem import Weights

_UNUSED_GRADIENTS = (SGD, SGDW)  # dU/dg does not depend on g
_DIRECTIONS: dict[type[Optimizer], Callable[[GroupStep, Tensors], Tensors]] = {
    SGD: sgd_direction,
    SGDW: sgd_direction,
    Adam: adam_direction,
    AdamW: adam_direction,
    RMSprop: rmsprop_direction,
    RMSpropTF: rmsprop_tf_direction,
    Lamb: lamb_direction,
}


class Rule(NamedTuple):
    """The rule by which steps of one kind of optimizer are differentiated.

    `direction`: q = dL_val/dw' of a group to u. `uses_gradients`: whether it depends on g and the state. `update`: the
    step's definition, which hyperparameters are differentiated through; None for the approximation u = -lr v.
    """

    direction: Callable[[GroupStep, Tensors], Tensors]
    uses_gradients: bool
    update: Update | None


def rule_of(optimizer: Optimizer, approximate: bool = False) -> Rule:
    """The Rule of `optimizer`; ValueError where that is not known and not `approximate`."""
    if approximate:
        return Rule(gradient_descent_direction, False, None)
    kind = type(bare_optimizer(optimizer))
    try:
        update = update_of(optimizer)
    except ValueError as error:
        raise ValueError(f"{error}, or declare the approximation u = -lr v with approximate=True") from error
    return Rule(_DIRECTIONS[kind], kind not in _UNUSED_GRADIENTS, update)


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
            along = clip.scale * clip.pull * _inner(gradients, u) / clip.length.clamp_min(1e-15) ** 2
            u = torch._foreach_mul(u, clip.scale)  # type: ignore[assignment]
            torch._foreach_sub_(u, torch._foreach_mul(gradients, along))
            found = dict(zip(found, u, strict=True))
        return {name: found[name] if name in found else torch.zeros_like(v[name]) for name in self.weights}

    def hyperparameter_gradients(self, v: Weights) -> list[dict[str, Tensor]]:
        """<v, dU/dh>, scalars by the name of h, for each parameter group of the optimizer.

        lr and weight_decay, and as the optimizer has them momentum (where it is not 0), beta1 and beta2, alpha.
        """
        if not self._hyperparameters:
            raise ValueError("this step was recorded for u alone; pass hyperparameters=True to record_step")
        assert self.rule.update is not None
        by_group = []
        for group in self._after(v):
            q = lifted([v[name] for name in group.names])
            pieces = [_in_settings(self.rule.update, piece, part) for piece, part in group.pieces(q)]
            by_group.append(
                {h: torch.stack([piece[h] for piece in pieces]).sum() for h in (pieces[0] if pieces else {})}
            )
        return by_group

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
    or `hyperparameters` need them; for these also the optimizer's state. `norm`: that of the gradients before clipping
    to `max_norm` (clip_grad_norm_ returns it); None: not clipped. `approximate`: u = -lr v whatever the optimizer. A
    step that loss scaling skips (accelerator.optimizer_step_was_skipped) has no hypergradient: drop the record.
    ValueError: see `rule_of`.
    """
    rule, bare = rule_of(optimizer, approximate), bare_optimizer(optimizer)
    if hyperparameters and rule.update is None:
        raise ValueError("hyperparameters have no gradient in the approximation u = -lr v; leave approximate=True out")
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
    inside = None if rule.update is None else own_clipping(bare)
    weights = {name: p.detach().clone() for p, name in names.items()}
    groups = [_record_group(bare, group, names, weights, keeps) for group in bare.param_groups]
    if hyperparameters:
        groups = [
            group._replace(before=[present_state(bare, live, p) for p in group.parameters])
            for group, live in zip(groups, bare.param_groups, strict=True)
        ]
    if inside is not None:
        groups, clip = _clipped_again(groups, inside, clip)
    return RecordedStep(weights, rule, clip, bare, groups, hyperparameters)


def _record_group(
    optimizer: Optimizer, group: dict[str, Any], names: dict[Tensor, str], weights: Weights, keeps: bool
) -> GroupStep:
    moved = [p for p in group["params"] if p.grad is not None]
    kept = [names[p] for p in moved]
    return GroupStep(
        names=kept,
        parameters=moved,
        settings=group_settings(group),
        weights=[weights[name] for name in kept],
        # Copies: a foreach SGD with Nesterov momentum changes .grad in place.
        gradients=[g.clone() for g in lifted([p.grad for p in moved])] if keeps else [],
        first=[optimizer.state.get(p, {}).get("momentum_buffer") is None for p in moved],
        before=[],
        steps=step_counts(optimizer, group, moved),
        states=[],
    )


def _clipped_again(groups: list[GroupStep], max_norm: float, clip: Clip | None) -> tuple[list[GroupStep], Clip]:
    """As timm's LAMB clips, by the norm of all its gradients, before its moments see them."""
    inside = _clip(get_total_norm([g for group in groups for g in group.gradients]), max_norm, margin=0.0)
    scaled = [
        group._replace(gradients=list(torch._foreach_mul(group.gradients, inside.scale))) if group.names else group
        for group in groups
    ]
    return scaled, inside if clip is None else _joined(clip, inside)


def _inner(a: Tensors, b: Tensors) -> Tensor:
    """<a, b> over all tensors: a scalar. Reads both once and writes nothing of their size."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def _in_settings(update: Update, step: GroupStep, q: Tensors) -> dict[str, Tensor]:
    """<q, dU/dh> by autograd through the update's definition; host scalars in the type of q."""

    def leaf(value: Any) -> Tensor:  # in float64, as 1 - beta is small
        return torch.tensor(float(value), dtype=torch.float64, requires_grad=True)

    settings = step.settings
    leaves: dict[str, Tensor] = {}
    for name in ("lr", "weight_decay", "momentum", "alpha"):
        if name in settings and (name != "momentum" or settings[name] != 0):
            leaves[name] = leaf(settings[name])
    settings = {**settings, **leaves}
    if "betas" in settings:
        settings["betas"] = [leaf(beta) for beta in settings["betas"]]
        leaves["beta1"], leaves["beta2"] = settings["betas"]
    given = zip(lifted(step.weights), step.gradients, step.before, strict=True)
    with torch.enable_grad():
        moved = [update(weight, gradient, state, settings)[0] for weight, gradient, state in given]
    found = torch.autograd.grad(moved, list(leaves.values()), q, allow_unused=True, materialize_grads=True)
    return {name: slope.to(q[0].dtype) for name, slope in zip(leaves, found, strict=True)}


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

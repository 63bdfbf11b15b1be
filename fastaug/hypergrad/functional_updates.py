"""Optimizer updates as pure functions, (weight, gradient, state, settings) -> (new weight, new state).

They are the definition that everything here differentiates: what torch and timm compute in `optimizer.step()`, on
autograd's graph and without changing anything. Tests hold them to the real step.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from timm.optim.sgdw import SGDW
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

State = Mapping[str, Any]  # what the optimizer keeps for one weight; "step": updates taken; {} before the first one
Settings = Mapping[str, Any]  # of a parameter group, without "params"; numbers may be tensors on autograd's graph
Update = Callable[[Tensor, Tensor, State, Settings], tuple[Tensor, State]]


def sgd(weight: Tensor, gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """Stochastic gradient descent with momentum, dampening and Nesterov's momentum (Sutskever et al. 2013)."""
    gradient = _with_decay(gradient, weight, settings["weight_decay"])
    moved, state = _with_momentum(gradient, state, settings)
    return weight - settings["lr"] * moved, state


def sgdw(weight: Tensor, gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """SGD with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 1)."""
    moved, state = _with_momentum(gradient, state, settings)
    return _decayed(weight, settings) - settings["lr"] * moved, state


def adam(weight: Tensor, gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """Adam (Kingma & Ba 2015, algorithm 1), AdamW (Loshchilov & Hutter 2019, algorithm 2); amsgrad included."""
    if settings["decoupled_weight_decay"]:
        weight_kept = _decayed(weight, settings)
    else:
        weight_kept, gradient = weight, _with_decay(gradient, weight, settings["weight_decay"])
    moved, state = _adam_ratio(gradient, state, settings)
    return weight_kept - settings["lr"] * moved, state


def rmsprop(weight: Tensor, gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """RMSprop (Hinton's lecture 6e) as torch has it: eps is added to the root."""
    gradient = _with_decay(gradient, weight, settings["weight_decay"])
    squares, kept = _rmsprop_squares(gradient, state, settings, start=0.0)
    moved, momentum = gradient / (_root(squares) + settings["eps"]), settings["momentum"]
    if momentum > 0:
        moved = kept["momentum_buffer"] = momentum * _kept(state, "momentum_buffer", gradient) + moved
    return weight - settings["lr"] * moved, kept


def rmsprop_tf(weight: Tensor, gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """RMSprop as TensorFlow and timm have it: eps inside the root, squares that start at 1, lr in the momentum."""
    lr, momentum = settings["lr"], settings["momentum"]
    if settings["decoupled_decay"]:
        weight_kept = _decayed(weight, settings)
    else:
        weight_kept, gradient = weight, _with_decay(gradient, weight, settings["weight_decay"])
    squares, kept = _rmsprop_squares(gradient, state, settings, start=1.0)
    moved = gradient / _root(squares + settings["eps"])
    if momentum > 0:
        buffer = momentum * _kept(state, "momentum_buffer", gradient)
        if settings["lr_in_momentum"]:
            kept["momentum_buffer"] = buffer + lr * moved
            return weight_kept - kept["momentum_buffer"], kept
        moved = kept["momentum_buffer"] = buffer + moved
    return weight_kept - lr * moved, kept


def lamb(weight: Tensor, gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """LAMB (You et al. 2020, algorithm 2) as timm has it, after its own clipping: see `own_clipping`.

    Each weight's step is scaled by its trust ratio |weight| / |step|, 1 where one of them is 0 or nothing is decayed.
    """
    ratio, state = _adam_ratio(gradient, state, settings)
    return lamb_by_ratio(weight, ratio, settings), state


def lamb_by_ratio(weight: Tensor, ratio: Tensor, settings: Settings) -> Tensor:
    """The second half of `lamb`: the new weight from Adam's ratio."""
    decay = settings["weight_decay"]
    if settings["decoupled_decay"]:
        weight, moved = _decayed(weight, settings), ratio
    else:
        moved = _with_decay(ratio, weight, decay)
    if decay != 0 or settings["always_adapt"]:
        length, size = moved.norm(), weight.norm()
        adapts = (length > 0) & (size > 0)
        trust = torch.where(adapts, size / torch.where(adapts, length, 1), 1)
        moved = (trust.clamp(max=1) if settings["trust_clip"] else trust) * moved
    return weight - settings["lr"] * moved


UPDATES: Mapping[type[Optimizer], Update] = MappingProxyType(
    {SGD: sgd, SGDW: sgdw, Adam: adam, AdamW: adam, RMSprop: rmsprop, RMSpropTF: rmsprop_tf, Lamb: lamb}
)


def update_of(optimizer: Optimizer) -> Update:
    """The functional update of an optimizer; ValueError for one, or for settings, that have none."""
    optimizer = bare_optimizer(optimizer)
    name, update = type(optimizer).__name__, UPDATES.get(type(optimizer))
    if update is None:
        known = ", ".join(kind.__name__ for kind in UPDATES)
        raise ValueError(f"the step of {name} cannot be differentiated; use {known}")
    for group in optimizer.param_groups:
        if group.get("caution"):
            reason = "caution=True (its mask has no useful derivative)"
        elif group.get("maximize"):
            reason = "maximize=True"
        else:
            continue
        raise ValueError(f"the step of {name} with {reason} cannot be differentiated; turn it off")
    return update


def clipped(gradients: Sequence[Tensor | None], max_norm: float, margin: float = 1e-6) -> list[Tensor | None]:
    """Gradients clipped by their global norm, on autograd's graph.

    torch.nn.utils.clip_grad_norm_ takes the norm for a constant. `margin` is added to the norm, as torch does. None
    where there is no gradient.
    """
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients if g is not None]))
    shrink = ((norm + margin) / max_norm).clamp(min=1)
    return [None if g is None else g / shrink for g in gradients]


def own_clipping(optimizer: Optimizer) -> float | None:
    """The global norm to which the optimizer itself clips all gradients (margin 0) before its update; timm's LAMB."""
    optimizer = bare_optimizer(optimizer)
    found: float | None = optimizer.defaults["max_grad_norm"] if isinstance(optimizer, Lamb) else None
    return found


def bare_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Accelerate's wrapper, which holds the state."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def group_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one of optimizer.param_groups as they are now."""
    return {name: value for name, value in group.items() if name != "params"}


def present_state(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Copies of what the optimizer keeps for a parameter of `group`; its "step" is there if updates are counted."""
    state = {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in optimizer.state.get(parameter, {}).items()
        if value is not None  # a momentum buffer that SGDW does not use
    }
    if "step" in group:  # timm's LAMB counts by group
        state["step"] = torch.as_tensor(group["step"]).clone()
    return state


# ---- parts of the updates


def _with_decay(gradient: Tensor, weight: Tensor, decay: Any) -> Tensor:
    """G = g + decay w. A decay that is a tensor stays on the graph, even one of 0."""
    return gradient + decay * weight if isinstance(decay, Tensor) or decay != 0 else gradient


def _decayed(weight: Tensor, settings: Settings) -> Tensor:
    """The weight after decoupled decay by lr, or by lr^2 / max_lr where timm "corrects" it."""
    lr, decay = settings["lr"], settings["weight_decay"]
    if not isinstance(decay, Tensor) and decay == 0:
        return weight
    rate = lr**2 / settings["max_lr_snapshot"] if settings.get("corrected_weight_decay") else lr
    return weight * (1 - rate * decay)


def _with_momentum(gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """What SGD subtracts. The first update makes the gradient itself the momentum buffer, whatever the dampening."""
    momentum = settings["momentum"]
    if momentum == 0:
        return gradient, state
    buffer = state.get("momentum_buffer")
    buffer = gradient if buffer is None else momentum * buffer + (1 - settings["dampening"]) * gradient
    return gradient + momentum * buffer if settings["nesterov"] else buffer, {**state, "momentum_buffer": buffer}


def _adam_ratio(gradient: Tensor, state: State, settings: Settings) -> tuple[Tensor, State]:
    """(m / c1) / (sqrt(s / c2) + eps) of the moments m and s after the update, c = 1 - beta^t."""
    beta1, beta2 = settings["betas"]
    step = float(state.get("step", 0)) + 1
    fresh = 1 - beta1 if settings.get("grad_averaging", True) else 1.0
    mean = beta1 * _kept(state, "exp_avg", gradient) + fresh * gradient
    square = largest = beta2 * _kept(state, "exp_avg_sq", gradient) + (1 - beta2) * gradient**2
    kept = {**state, "step": step, "exp_avg": mean, "exp_avg_sq": square}
    if settings.get("amsgrad"):
        before = _kept(state, "max_exp_avg_sq", gradient)
        # Not torch.maximum, which halves the derivative where both are equal.
        largest = kept["max_exp_avg_sq"] = torch.where(square >= before, square, before)
    c1, c2 = (1 - beta**step if settings.get("bias_correction", True) else 1.0 for beta in (beta1, beta2))
    return mean / (_root(largest) * (c1 / c2**0.5) + settings["eps"] * c1), kept


def _rmsprop_squares(gradient: Tensor, state: State, settings: Settings, start: float) -> tuple[Tensor, dict[str, Any]]:
    """The running mean of squares, less the square of the running mean if centered; the state with both."""
    alpha = settings["alpha"]
    square = alpha * _kept(state, "square_avg", gradient, start) + (1 - alpha) * gradient**2
    kept = {**state, "step": float(state.get("step", 0)) + 1, "square_avg": square}
    if settings["centered"]:
        mean = kept["grad_avg"] = alpha * _kept(state, "grad_avg", gradient) + (1 - alpha) * gradient
        return square - mean**2, kept
    return square, kept


def _kept(state: State, name: str, like: Tensor, start: float = 0.0) -> Tensor:
    return state[name] if name in state else torch.full_like(like, start)


def _root(square: Tensor) -> Tensor:
    """The square root of square plus the smallest normal number: its derivative is finite where there is nothing."""
    return (square + torch.finfo(square.dtype).tiny).sqrt()

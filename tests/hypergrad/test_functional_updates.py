"""The functional updates against `optimizer.step()` of torch and timm, and what differentiating them relies on."""

import math
from typing import Any

import pytest
import torch
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from timm.optim.sgdw import SGDW
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad.functional_updates import (
    clipped,
    group_settings,
    own_clipping,
    present_state,
    update_of,
)

SHAPES = ((3, 2), (3,), (2, 2))
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "sgd, momentum, dampening": (SGD, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "sgd, nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd, nesterov, foreach": (SGD, {"momentum": 0.9, "nesterov": True, "foreach": True}),
    "sgdw": (SGDW, {"weight_decay": 0.1}),
    "sgdw, momentum, dampening": (SGDW, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "sgdw, nesterov, corrected": (
        SGDW,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "corrected_weight_decay": True},
    ),
    "adam": (Adam, {}),
    "adam, coupled decay": (Adam, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adam, decoupled decay": (Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adamw": (AdamW, {"weight_decay": 0.1}),
    "adamw, foreach": (AdamW, {"weight_decay": 0.1, "foreach": True}),
    "adamw, fused": (AdamW, {"weight_decay": 0.1, "fused": True}),
    "adamw, amsgrad": (AdamW, {"weight_decay": 0.1, "amsgrad": True, "betas": (0.7, 0.4)}),
    "adamw, large eps": (AdamW, {"eps": 0.1}),
    "adamw, betas of 0": (AdamW, {"betas": (0.0, 0.0), "eps": 0.1}),
    "rmsprop": (RMSprop, {"weight_decay": 0.1}),
    "rmsprop, momentum, centered": (RMSprop, {"momentum": 0.9, "centered": True, "alpha": 0.8}),
    "rmsprop_tf": (RMSpropTF, {"weight_decay": 0.1}),
    "rmsprop_tf, momentum, centered": (RMSpropTF, {"weight_decay": 0.1, "momentum": 0.9, "centered": True}),
    "rmsprop_tf, lr outside": (RMSpropTF, {"momentum": 0.9, "lr_in_momentum": False}),
    "rmsprop_tf, decoupled": (RMSpropTF, {"weight_decay": 0.1, "decoupled_decay": True}),
    "rmsprop_tf, corrected": (
        RMSpropTF,
        {"weight_decay": 0.1, "decoupled_decay": True, "corrected_weight_decay": True},
    ),
    "lamb": (Lamb, {}),
    "lamb, unclipped": (Lamb, {"max_grad_norm": None, "weight_decay": 0.0}),
    "lamb, always adapted": (Lamb, {"max_grad_norm": 0.3, "always_adapt": True, "weight_decay": 0.0}),
    "lamb, trust clipped": (Lamb, {"trust_clip": True, "weight_decay": 0.1}),
    "lamb, decoupled": (Lamb, {"weight_decay": 0.1, "decoupled_decay": True}),
    "lamb, corrected": (Lamb, {"weight_decay": 0.1, "decoupled_decay": True, "corrected_weight_decay": True}),
    "lamb, not averaged, not corrected": (Lamb, {"grad_averaging": False, "bias_correction": False}),
    "lamb, foreach": (Lamb, {"weight_decay": 0.1, "foreach": True}),
}


def started(kind: str, seed: int = 0) -> tuple[list[nn.Parameter], Optimizer]:
    """Three parameters in two groups, the second without decay and with a rate of its own."""
    g = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64)) for shape in SHAPES]
    make, settings = KINDS[kind]
    groups: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.05}]
    return parameters, make(groups, **{"lr": 0.02, **settings})  # type: ignore[arg-type]


def gradients(turn: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(100 + turn)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in SHAPES]


def near(found: Any, expected: Any) -> bool:
    found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    return bool((found - expected).norm() <= 1e-12 * expected.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_states_are_those_of_the_real_steps(kind: str) -> None:
    """Six steps with a rate that falls; the second parameter has no gradient in the first two."""
    parameters, optimizer = started(kind)
    update, bound = update_of(optimizer), own_clipping(optimizer)
    weights = [p.detach().clone() for p in parameters]
    states: list[Any] = [{}, {}, {}]
    for turn in range(6):
        given: list[Tensor | None] = list(gradients(turn))
        if turn < 2 and not isinstance(optimizer, Lamb):  # LAMB counts the updates of a group
            given[1] = None
        for p, g in zip(parameters, given, strict=True):
            p.grad = None if g is None else g.clone()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()
        moved = given if bound is None else clipped(given, bound, margin=0.0)
        for i, g in enumerate(moved):
            if g is not None:
                settings = group_settings(optimizer.param_groups[i // 2])
                weights[i], states[i] = update(weights[i], g, states[i], settings)
    for i, p in enumerate(parameters):
        assert near(weights[i], p.detach())
        real = present_state(optimizer, optimizer.param_groups[i // 2], p)
        assert states[i].keys() == real.keys()
        assert all(near(states[i][name], value) for name, value in real.items())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_given_is_changed(kind: str) -> None:
    parameters, optimizer = started(kind)
    for p, g in zip(parameters, gradients(0), strict=True):
        p.grad = g
    optimizer.step()
    group, given = optimizer.param_groups[0], gradients(1)[0]
    state = present_state(optimizer, group, parameters[0])
    update_of(optimizer)(parameters[0], given, state, group_settings(group))
    assert torch.equal(given, gradients(1)[0])
    again = present_state(optimizer, group, parameters[0])
    assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(again[name])) for name in again)


@pytest.mark.parametrize("kind", KINDS)
def test_two_updates_are_differentiable_in_weights_gradients_and_settings(kind: str) -> None:
    parameters, optimizer = started(kind)
    for p, g in zip(parameters, gradients(0), strict=True):
        p.grad = g
    optimizer.step()
    group, update = optimizer.param_groups[0], update_of(optimizer)
    state, settings = present_state(optimizer, group, parameters[0]), group_settings(group)

    def twice(weight: Tensor, one: Tensor, two: Tensor, lr: Tensor, decay: Tensor) -> Tensor:
        learned = {**settings, "lr": lr, "weight_decay": decay}
        weight, after = update(weight, one, state, learned)
        return update(weight, two, after, learned)[0]

    numbers = [torch.tensor(float(group[name]), dtype=torch.float64) for name in ("lr", "weight_decay")]
    if not isinstance(optimizer, Lamb) or group["weight_decay"]:  # its trust ratio jumps where nothing is decayed
        inputs = [parameters[0].detach(), gradients(1)[0], gradients(2)[0], *numbers]
        assert torch.autograd.gradcheck(twice, [x.clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_finite_where_gradients_vanish(kind: str) -> None:
    parameters, optimizer = started(kind)
    zero = torch.zeros(SHAPES[0], dtype=torch.float64, requires_grad=True)
    (given,) = clipped([zero], own_clipping(optimizer) or 1.0)
    assert given is not None
    weight, _ = update_of(optimizer)(parameters[0], given, {}, group_settings(optimizer.param_groups[0]))
    assert torch.autograd.grad(weight.sum(), zero)[0].isfinite().all()


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_that_of_torch_with_the_derivative_of_the_norm(max_norm: float) -> None:
    given = [g.requires_grad_() for g in gradients(0)]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    for p, g in zip(parameters, given, strict=True):
        p.grad = g.detach().clone()
    clip_grad_norm_(parameters, max_norm)
    found = clipped([given[0], None, given[1], given[2]], max_norm)
    assert found[1] is None
    assert all(near(a.detach(), p.grad) for a, p in zip([found[0], *found[2:]], parameters, strict=True))  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(lambda *g: tuple(clipped(g, max_norm)), given)


def test_own_clipping_is_that_of_lamb_alone() -> None:
    assert own_clipping(started("lamb")[1]) == 1.0
    assert own_clipping(started("lamb, unclipped")[1]) is None
    assert own_clipping(started("adamw")[1]) is None


def test_optimizers_and_settings_without_a_definition_are_named() -> None:
    parameters = started("sgd")[0]
    with pytest.raises(ValueError, match=r"NAdam cannot be differentiated; use SGD, SGDW, .*Lamb$"):
        update_of(torch.optim.NAdam(parameters))
    with pytest.raises(ValueError, match="maximize=True cannot be differentiated; turn it off"):
        update_of(SGD(parameters, lr=math.e, maximize=True))
    with pytest.raises(ValueError, match="caution=True"):
        update_of(Lamb(parameters, caution=True))

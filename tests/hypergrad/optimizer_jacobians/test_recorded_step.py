"""u = (dU/dg)^T v and <v, dU/dh> against the real steps of torch and timm, by differences and by their own autograd."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from timm.optim.sgdw import SGDW
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad.functional_updates import clipped, group_settings, own_clipping, present_state, update_of
from fastaug.hypergrad.optimizer_jacobians.recorded_step import RecordedStep, record_step, rule_of, through_average
from fastaug.hypergrad.problem import Weights

SHAPES = {"conv.weight": (3, 2), "conv.bias": (3,), "head.weight": (2, 2)}
Make = Callable[[dict[str, nn.Parameter]], Optimizer]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_weights(seed: int, scale: float = 1.0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def in_groups(kind: Callable[..., Optimizer], **kwargs: Any) -> Make:
    """An optimizer with two groups as timm makes them: biases are not decayed, and have a rate of their own."""

    def make(parameters: dict[str, nn.Parameter]) -> Optimizer:
        plain = [p for name, p in parameters.items() if name.endswith("bias")]
        decayed = [p for name, p in parameters.items() if not name.endswith("bias")]
        own = {"lr": 0.5 * kwargs["lr"], "weight_decay": 0.0}
        return kind([{"params": plain, **own}, {"params": decayed}], **kwargs)

    return make


def step(
    make: Make, gradients: Weights, earlier: int, max_norm: float | None = None, **record: Any
) -> tuple[Weights, RecordedStep]:
    """w' after `earlier` fixed steps and one with `gradients`, and the record of that one."""
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = make(parameters)
    for turn in range(earlier):
        for name, g in random_weights(100 + turn).items():
            parameters[name].grad = g
        optimizer.step()
    for name, g in gradients.items():
        parameters[name].grad = g.clone()
    norm = clip_grad_norm_(parameters.values(), math.inf if max_norm is None else max_norm)
    recorded = record_step(optimizer, parameters.items(), norm=norm, max_norm=max_norm, **record)
    optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}, recorded


def dot(a: Weights, b: Weights) -> float:
    return float(sum((a[name] * b[name]).sum() for name in a))


def by_differences(make: Make, gradients: Weights, v: Weights, h: float, **kwargs: Any) -> Weights:
    """(dU/dg)^T v, one entry of g after the other."""
    found = {name: torch.zeros_like(g) for name, g in gradients.items()}
    for name, g in gradients.items():
        for i in range(g.numel()):
            sides = []
            for sign in (1, -1):
                moved = {n: t.clone() for n, t in gradients.items()}
                moved[name].view(-1)[i] += sign * h
                sides.append(dot(v, step(make, moved, **kwargs)[0]))
            found[name].view(-1)[i] = (sides[0] - sides[1]) / (2 * h)
    return found


def relative_error(found: Weights, truth: Weights, floor: float = 0.0) -> float:
    """|found - truth| / max(|truth|, floor)."""
    difference = {name: found[name] - truth[name] for name in truth}
    return dot(difference, difference) ** 0.5 / max(dot(truth, truth) ** 0.5, floor)


SGD_SETTINGS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "plain": (SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "nesterov foreach": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "foreach": True}),
}
SGD_KINDS = {name: in_groups(kind, **settings) for name, (kind, settings) in SGD_SETTINGS.items()}
ADAM_KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (Adam, {"lr": 0.01}),
    "adam, coupled decay": (Adam, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adamw": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": (AdamW, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "betas": (0.7, 0.4)}),
    "large eps": (AdamW, {"lr": 0.01, "eps": 0.1}),
    "rmsprop": (RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop, momentum, centered": (RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "alpha": 0.8}),
}
TIMM_NAMES = [
    "sgd",
    "momentum",
    "sgdw",
    "adam",
    "adamw",
    "rmsprop",
    "rmsproptf",
    "rmsproptfw",
    "lamb",
    "lambc",
    "lambw",
]


@pytest.mark.parametrize("max_norm", [None, 1.0, 100.0], ids=["no clip", "clipped", "below the clip"])
@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_sgd_as_the_real_step(kind: str, earlier: int, max_norm: float | None) -> None:
    gradients, v = random_weights(1), random_weights(2)
    h = 1e-4 if max_norm == 1 else 1.0  # without clipping the step is linear in g
    truth = by_differences(SGD_KINDS[kind], gradients, v, h, earlier=earlier, max_norm=max_norm)
    _, recorded = step(SGD_KINDS[kind], gradients, earlier, max_norm)
    assert relative_error(recorded.direction(v), truth) < (1e-8 if max_norm == 1 else 1e-13)


@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["no clip", "clipped"])
@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("kind", ADAM_KINDS)
def test_adaptive_steps_as_the_real_step(kind: str, earlier: int, max_norm: float | None) -> None:
    make = in_groups(ADAM_KINDS[kind][0], **ADAM_KINDS[kind][1])
    gradients, v = random_weights(1), random_weights(2)
    truth = by_differences(make, gradients, v, 1e-5, earlier=earlier, max_norm=max_norm)
    _, recorded = step(make, gradients, earlier, max_norm)
    # The first step of Adam without decay hardly depends on the size of g: u is 0 but for eps.
    assert relative_error(recorded.direction(v), truth, floor=1e-3) < 1e-7


BY_DEFINITION: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    **{f"sgd {name}": kind for name, kind in SGD_SETTINGS.items()},
    **ADAM_KINDS,
    "sgdw": (SGDW, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "sgdw, nesterov": (SGDW, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "rmsprop_tf": (RMSpropTF, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop_tf, momentum, centered": (RMSpropTF, {"lr": 0.01, "momentum": 0.9, "centered": True, "alpha": 0.8}),
    "rmsprop_tf, decoupled": (RMSpropTF, {"lr": 0.01, "weight_decay": 0.1, "decoupled_decay": True}),
    "lamb": (Lamb, {"lr": 0.01, "weight_decay": 0.1}),
    "lamb, always adapted": (Lamb, {"lr": 0.01, "always_adapt": True, "max_grad_norm": None, "weight_decay": 0.0}),
    "lamb, trust clipped": (Lamb, {"lr": 0.01, "weight_decay": 0.1, "trust_clip": True}),
    "lamb, decoupled": (Lamb, {"lr": 0.01, "weight_decay": 0.1, "decoupled_decay": True}),
    "lamb, not averaged": (Lamb, {"lr": 0.01, "grad_averaging": False, "bias_correction": False}),
}


@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["no clip", "clipped"])
@pytest.mark.parametrize("earlier", [0, 1, 5])
@pytest.mark.parametrize("kind", BY_DEFINITION)
def test_by_hand_as_autograd_through_the_definition(kind: str, earlier: int, max_norm: float | None) -> None:
    make = in_groups(BY_DEFINITION[kind][0], **BY_DEFINITION[kind][1])
    gradients, v = random_weights(1), random_weights(2)
    moved, recorded = step(make, gradients, earlier, max_norm)
    leaves = {name: g.clone().requires_grad_() for name, g in gradients.items()}
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = make(parameters)
    for turn in range(earlier):
        for name, g in random_weights(100 + turn).items():
            parameters[name].grad = g
        optimizer.step()
    given: Any = list(leaves.values()) if max_norm is None else clipped(list(leaves.values()), max_norm)
    if (bound := own_clipping(optimizer)) is not None:
        given = clipped(given, bound, margin=0.0)
    given, after = dict(zip(leaves, given, strict=True)), {}
    for group in optimizer.param_groups:
        for name in (n for n, p in parameters.items() if any(p is q for q in group["params"])):
            state = present_state(optimizer, group, parameters[name])
            weight = parameters[name].detach()
            after[name], _ = update_of(optimizer)(weight, given[name], state, group_settings(group))
    assert relative_error({n: w.detach() for n, w in after.items()}, moved) < 1e-12
    loss = torch.stack([(v[name] * w).sum() for name, w in after.items()]).sum()
    truth = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert relative_error(recorded.direction(v), truth, floor=1e-3) < 1e-11


class Net(nn.Module):
    """Enough of a network for timm to make its groups."""

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.conv, self.head = nn.Module(), nn.Module()
        for name, p in weights.items():
            part, leaf = name.split(".")
            getattr(self, part).register_parameter(leaf, p)


@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("opt", TIMM_NAMES)
def test_optimizers_by_their_names_in_timm(opt: str, earlier: int) -> None:
    def make(parameters: dict[str, nn.Parameter]) -> Optimizer:
        return create_optimizer_v2(Net(parameters), opt=opt, lr=0.01, weight_decay=0.05)

    gradients, v = random_weights(1), random_weights(2)
    truth = by_differences(make, gradients, v, 1e-5, earlier=earlier, max_norm=2.0)
    assert relative_error(step(make, gradients, earlier, 2.0)[1].direction(v), truth, floor=1e-3) < 1e-6


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_grad_norm": None, "weight_decay": 0.0},
        {"max_grad_norm": 0.3, "always_adapt": True, "weight_decay": 0.0},
        {"trust_clip": True},
        {"decoupled_decay": True, "corrected_weight_decay": True},
        {"grad_averaging": False, "bias_correction": False},
    ],
    ids=lambda kwargs: ",".join(kwargs),
)
def test_lamb_with_its_options(kwargs: dict[str, Any]) -> None:
    make = in_groups(Lamb, **{"lr": 0.01, "weight_decay": 0.1, **kwargs})
    gradients, v = random_weights(1), random_weights(2)
    for max_norm in (None, 0.2, 1.5):  # below and above the clipping that LAMB does itself
        truth = by_differences(make, gradients, v, 1e-5, earlier=2, max_norm=max_norm)
        assert relative_error(step(make, gradients, 2, max_norm)[1].direction(v), truth) < 1e-7


@settings(max_examples=30)
@given(
    lr=st.floats(1e-4, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    dampening=st.floats(0, 0.9),
    nesterov=st.booleans(),
    decay=st.floats(0, 0.1),
    earlier=st.integers(0, 2),
)
def test_sgd_is_linear_in_its_gradient(
    lr: float, momentum: float, dampening: float, nesterov: bool, decay: float, earlier: int
) -> None:
    """<u, d> = <v, U(g + d) - U(g)> for any d, whatever the settings."""
    nesterov = nesterov and momentum > 0
    extra = {"momentum": momentum, "nesterov": nesterov, "dampening": 0.0 if nesterov else dampening}
    make = in_groups(SGD, lr=lr, weight_decay=decay, **extra)
    g, v, d = random_weights(1), random_weights(2), random_weights(3)
    here, recorded = step(make, g, earlier)
    there, _ = step(make, {name: g[name] + d[name] for name in g}, earlier)
    change = dot(v, {name: there[name] - here[name] for name in g})
    assert dot(recorded.direction(v), d) == pytest.approx(change, rel=1e-9, abs=1e-13)


@settings(max_examples=20)
@given(max_norm=st.floats(0.1, 20), seed=st.integers(0, 99))
def test_a_clipped_gradient_loses_its_length(max_norm: float, seed: int) -> None:
    """Along g itself an active clip leaves only its margin 1e-6; u is linear in v in any case."""
    make, g = SGD_KINDS["plain"], random_weights(seed)
    _, recorded = step(make, g, 0, max_norm)
    v, other = random_weights(seed + 100), random_weights(seed + 200)
    both = recorded.direction({name: v[name] + 2 * other[name] for name in v})
    parts = recorded.direction(v), recorded.direction(other)
    assert relative_error(both, {name: parts[0][name] + 2 * parts[1][name] for name in v}) < 1e-12
    size = dot(g, g) ** 0.5
    if size > max_norm * 1.01:
        along = abs(dot(parts[0], g)) / (dot(parts[0], parts[0]) ** 0.5 * size)
        assert along < 1e-5


HYPER = {
    **BY_DEFINITION,
    "sgd, momentum and dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "dampening": 0.2}),
    "betas of 0": (AdamW, {"lr": 0.01, "betas": (0.0, 0.0), "eps": 0.1, "weight_decay": 0.1}),
}
# LAMB's trust ratio comes and goes with the decay, so that nothing has a derivative in a decay of 0.
HYPER = {name: kind for name, kind in HYPER.items() if not name.startswith("lamb") or "always" in name}
HYPER["lamb"] = (partial(Lamb, always_adapt=True), {"lr": 0.01, "weight_decay": 0.1})


@pytest.mark.parametrize("max_norm", [None, 1.0], ids=["no clip", "clipped"])
@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("kind", HYPER)
def test_hyperparameters_of_the_last_step(kind: str, earlier: int, max_norm: float | None) -> None:
    """Each one moved in the last step alone, group by group."""
    make, gradients, v = in_groups(HYPER[kind][0], **HYPER[kind][1]), random_weights(1), random_weights(2)
    found = step(make, gradients, earlier, max_norm, hyperparameters=True)[1].hyperparameter_gradients(v)
    assert len(found) == 2
    for number, names in enumerate(found):
        assert names.keys() >= {"lr", "weight_decay"}
        assert "momentum" in names or HYPER[kind][1].get("momentum", 0) == 0
        for name, value in names.items():
            h = 1e-7 if name.startswith("beta") else 1e-5  # 1 - beta is small itself
            makes = [moved_last(make, earlier, number, name, sign * h) for sign in (1, -1)]
            up, down = (dot(v, step(moved, gradients, earlier, max_norm)[0]) for moved in makes)
            assert float(value) == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-8), (number, name)


def moved_last(make: Make, earlier: int, number: int, name: str, change: float) -> Make:
    """`make` with one hyperparameter of one group moved before step `earlier`."""

    def made(parameters: dict[str, nn.Parameter]) -> Optimizer:
        optimizer = make(parameters)
        taken = 0

        def before(*_: Any) -> None:
            nonlocal taken
            if taken == earlier:
                group = optimizer.param_groups[number]
                if name.startswith("beta"):
                    betas = list(group["betas"])
                    betas[int(name[-1]) - 1] += change
                    group["betas"] = tuple(betas)
                else:
                    group[name] += change
            taken += 1

        optimizer.register_step_pre_hook(before)
        return optimizer

    return made


def test_where_there_was_no_gradient_u_is_zero() -> None:
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = AdamW(parameters.values(), lr=0.1)
    parameters["head.weight"].grad = torch.ones_like(parameters["head.weight"])
    recorded = record_step(optimizer, parameters.items())
    optimizer.step()
    u = recorded.direction(random_weights(2))
    assert list(u) == list(SHAPES)
    assert not u["conv.weight"].any()
    assert u["head.weight"].any()


def test_frozen_parameters_are_no_part_of_the_step() -> None:
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = SGD(parameters.values(), lr=0.1)
    parameters["conv.bias"].requires_grad_(False)
    trained = ["conv.weight", "head.weight"]
    for name in trained:
        parameters[name].grad = torch.ones_like(parameters[name])
    recorded = record_step(optimizer, parameters.items())
    optimizer.step()
    assert list(recorded.weights) == trained
    assert list(recorded.direction({name: random_weights(2)[name] for name in trained})) == trained


@pytest.mark.parametrize("opt", ["sgd", "adam", "adamw", "rmsprop", "rmsproptf", "lamb"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12])
def test_finite_where_gradients_vanish(opt: str, max_norm: float | None, size: float) -> None:
    parameters = {name: nn.Parameter(w.float()) for name, w in random_weights(0).items()}
    optimizer = create_optimizer_v2(Net(parameters), opt=opt, lr=0.01, weight_decay=0.0)
    for p in parameters.values():
        p.grad = torch.full_like(p, size)
    norm = clip_grad_norm_(parameters.values(), max_norm or math.inf)
    recorded = record_step(optimizer, parameters.items(), norm=norm, max_norm=max_norm, hyperparameters=True)
    optimizer.step()
    v = {name: w.float() for name, w in random_weights(2).items()}
    assert all(u.isfinite().all() for u in recorded.direction(v).values())
    assert all(value.isfinite() for group in recorded.hyperparameter_gradients(v) for value in group.values())


def test_half_precision_weights_give_a_float32_direction() -> None:
    parameters = {name: nn.Parameter(w.bfloat16()) for name, w in random_weights(0).items()}
    optimizer = AdamW(parameters.values(), lr=0.1)
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    recorded = record_step(optimizer, parameters.items(), hyperparameters=True)
    optimizer.step()
    v = {name: w.bfloat16() for name, w in random_weights(2).items()}
    assert {u.dtype for u in recorded.direction(v).values()} == {torch.float32}
    assert recorded.hyperparameter_gradients(v)[0]["lr"].dtype == torch.float32


def test_the_record_changes_nothing() -> None:
    """Weights, gradients and the optimizer's state after a recorded and questioned step are those of a plain one."""
    ends = []
    for records in (False, True):
        parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
        optimizer = SGD(parameters.values(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
        for name, g in random_weights(1).items():
            parameters[name].grad = g
        if records:
            recorded = record_step(
                optimizer, parameters.items(), norm=torch.tensor(9.0), max_norm=1.0, hyperparameters=True
            )
        optimizer.step()
        if records:
            recorded.direction(random_weights(2))
            recorded.hyperparameter_gradients(random_weights(2))
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        ends.append(([*parameters.values(), *gradients], optimizer.state_dict()))
    for (tensors, state), (tensors2, state2) in [ends]:
        assert len(tensors) == 2 * len(SHAPES)
        assert all(torch.equal(a, b) for a, b in zip(tensors, tensors2, strict=True))
        assert state["state"].keys() == state2["state"].keys()
        assert all(
            torch.equal(state["state"][k]["momentum_buffer"], s["momentum_buffer"]) for k, s in state2["state"].items()
        )


def test_recording_leaves_no_entries_in_the_state() -> None:
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = SGD(parameters.values(), lr=0.1)
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    recorded = record_step(optimizer, parameters.items())
    recorded.direction(random_weights(2))
    assert not optimizer.state


def test_through_accelerate() -> None:
    """AcceleratedOptimizer is a subclass of Optimizer with none of its state: the one inside counts."""
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = Accelerator(cpu=True).prepare(AdamW(parameters.values(), lr=0.1))
    assert isinstance(optimizer, AcceleratedOptimizer)
    for name, g in random_weights(1).items():
        parameters[name].grad = g
    recorded = record_step(optimizer, parameters.items())
    optimizer.step()
    expected = step(lambda p: AdamW(p.values(), lr=0.1), random_weights(1), 0)[1].direction(random_weights(2))
    assert relative_error(recorded.direction(random_weights(2)), expected) == 0


@pytest.mark.parametrize("opt", ["lion", "muon", "nadamw", "adafactor", "lars"])
def test_unknown_optimizers_are_refused_with_the_names_that_work(opt: str) -> None:
    network = Net({name: nn.Parameter(w) for name, w in random_weights(0).items()})
    optimizer = create_optimizer_v2(network, opt=opt, lr=0.1)
    with pytest.raises(ValueError, match=r"cannot be differentiated; use SGD, .*AdamW.*Lamb, or declare"):
        rule_of(optimizer)
    assert rule_of(optimizer, approximate=True)


@pytest.mark.parametrize(("opt", "word"), [("clamb", "caution"), ("csgdw", "caution"), ("crmsproptf", "caution")])
def test_settings_that_cannot_be_done_are_named(opt: str, word: str) -> None:
    network = Net({name: nn.Parameter(w) for name, w in random_weights(0).items()})
    with pytest.raises(ValueError, match=word):
        rule_of(create_optimizer_v2(network, opt=opt, lr=0.1))
    with pytest.raises(ValueError, match="maximize"):
        rule_of(SGD(network.parameters(), lr=0.1, maximize=True))


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Odd(SGD):
        pass

    with pytest.raises(ValueError, match="Odd"):
        rule_of(Odd([nn.Parameter(torch.ones(2))], lr=0.1))


def test_the_declared_approximation() -> None:
    v, g = random_weights(2), random_weights(1)
    recorded = step(in_groups(AdamW, lr=0.1), g, 2, approximate=True)[1]
    u = recorded.direction(v)
    torch.testing.assert_close(u["head.weight"], -0.1 * v["head.weight"])
    torch.testing.assert_close(u["conv.bias"], -0.05 * v["conv.bias"])
    with pytest.raises(ValueError, match="hyperparameters"):
        step(in_groups(AdamW, lr=0.1), g, 2, approximate=True, hyperparameters=True)


def test_asked_at_the_wrong_time() -> None:
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = AdamW(parameters.values(), lr=0.1)
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    recorded = record_step(optimizer, parameters.items())
    with pytest.raises(ValueError, match="0 steps and 1 were expected"):
        recorded.direction(random_weights(2))
    optimizer.step()
    recorded.direction(random_weights(2))
    optimizer.step()
    with pytest.raises(ValueError, match="2 steps and 1 were expected"):
        recorded.direction(random_weights(2))


def test_wrong_arguments_are_named() -> None:
    parameters = {name: nn.Parameter(w) for name, w in random_weights(0).items()}
    optimizer = SGD(parameters.values(), lr=0.1)
    with pytest.raises(ValueError, match="1 of the optimizer's parameters"):
        record_step(optimizer, list(parameters.items())[1:])
    with pytest.raises(ValueError, match="norm before it"):
        record_step(optimizer, parameters.items(), max_norm=1.0)
    with pytest.raises(ValueError, match="differ in 1 names: other"):
        record_step(optimizer, parameters.items()).direction({**random_weights(0), "other": torch.ones(1)})
    with pytest.raises(ValueError, match="hyperparameters=True"):
        record_step(optimizer, parameters.items()).hyperparameter_gradients(random_weights(0))
    with pytest.raises(ValueError, match="decay"):
        through_average(random_weights(0), 1.0)


def test_validation_of_an_exponential_average() -> None:
    """d L(decay average + (1 - decay) w')/dw' is (1 - decay) times the gradient at the average."""
    average, fresh = random_weights(4), {n: w.requires_grad_() for n, w in random_weights(5).items()}
    mixed = {name: 0.9 * average[name] + 0.1 * fresh[name] for name in average}
    loss = torch.stack([(m**3).sum() for m in mixed.values()]).sum()
    truth: tuple[Tensor, ...] = torch.autograd.grad(loss, list(fresh.values()))
    found = through_average({name: 3 * m.detach() ** 2 for name, m in mixed.items()}, 0.9)
    for a, b in zip(found.values(), truth, strict=True):
        torch.testing.assert_close(a, b)

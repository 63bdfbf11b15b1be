"""Windows of K updates against one-step hypergradients, against really retraining, and what they leave alone."""

import gc
import io
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import tiny_nets as nets
import torch
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from timm.optim.sgdw import SGDW
from tiny_nets import LOSSES, N, relative
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad import hypergradient
from fastaug.hypergrad.engines.unroll import Window, present_settings
from fastaug.hypergrad.optimizer_jacobians.recorded_step import record_step
from fastaug.hypergrad.problem import Problem, Samples, Weights
from fastaug.targets import SoftTarget

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

Make = Callable[..., Optimizer]
KINDS: dict[str, Make] = {
    "sgd": partial(SGD, lr=0.3, weight_decay=0.01),
    "momentum": partial(SGD, lr=0.3, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": partial(SGD, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgdw": partial(SGDW, lr=0.3, momentum=0.9, weight_decay=0.01),
    "adam": partial(Adam, lr=0.02, weight_decay=0.01, eps=1e-4),
    "adamw": partial(AdamW, lr=0.02, weight_decay=0.1, eps=1e-4),
    "rmsprop": partial(RMSprop, lr=0.005, momentum=0.9),
    "rmsprop_tf": partial(RMSpropTF, lr=0.01, momentum=0.9),
    "lamb": partial(Lamb, lr=0.02, weight_decay=0.1),
    "lamb, clipping itself": partial(Lamb, lr=0.02, weight_decay=0.1, max_grad_norm=0.1),
}
SEED, VALIDATION = 40, 11


class Learned:
    """Brightness, loss weights, soft rows, probabilities of operations and a rate, shared by all updates."""

    def __init__(self, **changed: Tensor) -> None:
        g = torch.Generator().manual_seed(3)
        start = {
            "brightness": torch.tensor(0.1, dtype=torch.float64),
            "weights": 0.5 + torch.rand(N, generator=g, dtype=torch.float64),
            "rows": torch.randn(N, 2, nets.CLASSES, generator=g, dtype=torch.float64),
            "scores": torch.randn(3, generator=g, dtype=torch.float64),
            "rate": torch.tensor(1.0, dtype=torch.float64),
        }
        self.parameters = {name: value.requires_grad_() for name, value in {**start, **changed}.items()}

    def samples(self, turn: int) -> Samples:
        p, images, target = self.parameters, nets.images(N, 60 + turn), nets.target(N, 80 + turn)
        drawn = (torch.arange(N) + turn) % 3
        seen = SoftTarget(target.classes, target.mass, p["weights"], p["rows"].softmax(-1))
        return Samples(images + p["brightness"] * images**2, seen, p["scores"].log_softmax(0)[drawn])

    def settings(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "lr": group["lr"] * self.parameters["rate"]} for group in given]


def started(kind: str, name: str = "smooth", earlier: int = 2) -> tuple[nn.Module, Optimizer]:
    """Two groups, as timm makes them, after real updates."""
    network = nets.build(name)
    biases = [p for p in network.parameters() if p.ndim == 1]
    optimizer = KINDS[kind](
        [{"params": biases, "weight_decay": 0.0}, {"params": [p for p in network.parameters() if p.ndim > 1]}]
    )
    for turn in range(earlier):
        optimizer.zero_grad()
        LOSSES(network(nets.images(N, turn)), nets.target(N, turn)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def train(
    network: nn.Module, optimizer: Optimizer, learned: Learned, turn: int, max_norm: float | None = None
) -> list[dict[str, Any]]:
    """One real update with a scheduled rate; the settings that it had, but for the learned rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * 0.8**turn
    given = present_settings(optimizer)
    samples, rate = learned.samples(turn), learned.parameters["rate"].item()
    torch.manual_seed(SEED + turn)
    loss = LOSSES(network(samples.images.detach()), SoftTarget(*(t.detach() for t in samples.target))).sum() / N
    loss.backward()
    if max_norm is not None:
        clip_grad_norm_(network.parameters(), max_norm)
    for group in optimizer.param_groups:
        group["lr"] *= rate
    optimizer.step()
    optimizer.zero_grad()
    return given


def trained(
    network: nn.Module, optimizer: Optimizer, learned: Learned, steps: int, max_norm: float | None = None
) -> Window:
    """The window of so many real updates."""
    window = Window(optimizer, network.named_parameters())
    for turn in range(steps):
        given = train(network, optimizer, learned, turn, max_norm)
        window.add(partial(learned.samples, turn), seed=SEED + turn, total=N, settings=partial(learned.settings, given))
    return window


def validation_loss(network: nn.Module) -> Tensor:
    """As a value: running statistics have no part in it."""
    return nets.validation_loss(network)


def validation_gradient(network: nn.Module) -> Weights:
    names, weights = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(validation_loss(network), weights), strict=True))


@pytest.mark.parametrize("max_norm", [None, 0.05], ids=["no clip", "clipped"])
@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_update_is_the_one_step_hypergradient(kind: str, earlier: int, max_norm: float | None) -> None:
    """Images, loss weights, soft rows, the score function and the learning rate; with dropout."""
    network, optimizer = started(kind, "dropout", earlier)
    learned = Learned()
    window = Window(optimizer, network.named_parameters())
    samples = learned.samples(0)
    torch.manual_seed(SEED)
    seen = SoftTarget(*(t.detach() for t in samples.target))
    (LOSSES(network(samples.images.detach()), seen).sum() / N).backward()
    norm = clip_grad_norm_(network.parameters(), max_norm or 1e9)
    recorded = record_step(optimizer, network.named_parameters(), norm=norm, max_norm=max_norm, hyperparameters=True)
    given = present_settings(optimizer)
    window.add(partial(learned.samples, 0), seed=SEED, total=N, settings=partial(learned.settings, given))
    optimizer.step()
    optimizer.zero_grad()
    v = validation_gradient(network)
    found = window.gradients(network, LOSSES, v, learned.parameters, max_norm=max_norm)
    problem = Problem(network, recorded.weights, learned.samples(0), LOSSES, N, SEED)
    expected = hypergradient(problem, recorded.direction(v), learned.parameters, "forward")
    rates = [
        group["lr"] * slopes["lr"] for group, slopes in zip(given, recorded.hyperparameter_gradients(v), strict=True)
    ]
    expected["rate"] = torch.stack(rates).sum()
    assert list(found) == list(learned.parameters)
    for name, slope in found.items():
        assert expected[name].any(), name
        assert relative(slope, expected[name]) <= 1e-10, name


@pytest.mark.parametrize("max_norm", [pytest.param(None, marks=pytest.mark.slow), 0.3], ids=["no clip", "clipped"])
@pytest.mark.parametrize("kind", KINDS)
def test_three_updates_against_really_training_again(kind: str, max_norm: float | None) -> None:
    """By differences of whole retrainings with the real optimizer: an image parameter, a loss weight, the rate."""
    network, optimizer = started(kind)
    start, learned = deepcopy((network, optimizer)), Learned()
    window = trained(network, optimizer, learned, 3, max_norm)
    assert len(window) == 3
    found = window.gradients(network, LOSSES, validation_gradient(network), learned.parameters, max_norm=max_norm)

    def retrained(**changed: Tensor) -> Tensor:
        again, its_optimizer = deepcopy(start)
        for turn in range(3):
            train(again, its_optimizer, Learned(**changed), turn, max_norm)
        return validation_loss(again).detach()

    one = torch.zeros(N, dtype=torch.float64).index_fill(0, torch.tensor(2), 1.0)
    moves = {"brightness": torch.tensor(1.0, dtype=torch.float64), "weights": one, "rate": torch.tensor(1.0).double()}
    for name, along in moves.items():
        at, h = learned.parameters[name].detach(), 1e-5
        slope = (retrained(**{name: at + h * along}) - retrained(**{name: at - h * along})) / (2 * h)
        assert relative((found[name] * along).sum(), slope) < 1e-6, name


def test_the_score_function_over_a_window_counts_each_draw_by_its_share() -> None:
    """Share: its own loss weight times the derivative in it, through all later updates; baseline over all draws."""
    network, optimizer = started("adamw")
    weights = torch.ones(2, N, dtype=torch.float64).requires_grad_()
    scores = torch.full((2, N), -1.0, dtype=torch.float64).requires_grad_()  # 0 would be: nothing could be drawn

    def drawn(turn: int) -> Samples:
        images, target, _ = Learned().samples(turn)
        scaled = target._replace(weight=target.weight.detach() * weights[turn])
        return Samples(images.detach(), scaled, scores[turn])

    window = Window(optimizer, network.named_parameters())
    for turn in range(2):
        settings = train(network, optimizer, Learned(), turn)
        window.add(partial(drawn, turn), seed=SEED + turn, total=N, settings=settings)
    parameters = {"weights": weights, "scores": scores}
    found = window.gradients(network, LOSSES, validation_gradient(network), parameters)
    share = found["weights"]
    assert relative(found["scores"], share - (share.sum() - share) / (2 * N - 1)) <= 1e-12


@pytest.mark.parametrize("kind", ["sgd", "momentum", "nesterov"])
def test_sgd_by_its_functional_update_is_that_of_higher(kind: str) -> None:
    network, optimizer = started(kind)
    learned = Learned()
    window = trained(network, optimizer, learned, 3, 0.3)
    v = validation_gradient(network)
    assert window._by_higher
    found = window.gradients(network, LOSSES, v, learned.parameters, max_norm=0.3)
    window._by_higher = False
    expected = window.gradients(network, LOSSES, v, learned.parameters, max_norm=0.3)
    for name, slope in found.items():
        assert relative(slope, expected[name]) <= 1e-12, name


@pytest.mark.parametrize("kind", ["nesterov", "adamw", "lamb"])
def test_learned_momentum_decay_and_betas(kind: str) -> None:
    """Against differences of the replay itself."""
    network, optimizer = started(kind)
    given, v = present_settings(optimizer), validation_gradient(network)
    names = ["betas"] if "betas" in given[0] else ["momentum"]
    start = {"weight_decay": 0.1} | ({"beta1": 0.9, "beta2": 0.99} if names == ["betas"] else {"momentum": 0.8})

    def gradients(at: dict[str, float], wanted: bool = True) -> Any:
        leaves = {n: torch.tensor(value, dtype=torch.float64, requires_grad=True) for n, value in at.items()}
        learned = {n: leaf for n, leaf in leaves.items() if not n.startswith("beta")}
        if names == ["betas"]:
            learned["betas"] = (leaves["beta1"], leaves["beta2"])  # type: ignore[assignment]
        window, reached = Window(optimizer, network.named_parameters()), []
        for turn in range(2):
            settings = [{**group, **learned} for group in given]
            window.add(partial(Learned().samples, turn), seed=SEED, total=N, settings=settings)

        def along(weights: Weights) -> Tensor:
            reached.append(torch.stack([(v[n] * w).sum() for n, w in weights.items()]).sum())
            return reached[0]

        found = window.gradients_of(along, network, LOSSES, leaves)
        return found if wanted else reached[0].detach()

    found = gradients(start)
    for name, value in start.items():
        sides = [gradients({**start, name: value + h}, wanted=False) for h in (1e-6, -1e-6)]
        assert relative(found[name], (sides[0] - sides[1]) / 2e-6) < 1e-6, name


@pytest.mark.parametrize("kind", ["nesterov", "adamw", "lamb"])
def test_everything_else_stays_as_it_is(kind: str) -> None:
    network, optimizer = started(kind, "dropout")
    learned = Learned()
    window = trained(network, optimizer, learned, 2)
    v = validation_gradient(network)
    for p in network.parameters():
        p.grad = torch.full_like(p, 7.0)
    before, state = deepcopy(network.state_dict()), deepcopy(optimizer.state_dict())
    generator = torch.get_rng_state()
    first = window.gradients(network, LOSSES, v, learned.parameters)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all((p.grad == 7).all() and p.is_leaf and p.requires_grad for p in network.parameters())  # type: ignore[union-attr]
    assert all(p.grad is None for p in learned.parameters.values())
    after = optimizer.state_dict()
    assert str(after["param_groups"]) == str(state["param_groups"])
    for number, kept in state["state"].items():
        assert all(torch.equal(value, after["state"][number][name]) for name, value in kept.items())
    again = window.gradients(network, LOSSES, v, learned.parameters)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_frozen_and_unused_weights_stay_as_they_are() -> None:
    """A frozen bias, and a layer that no image passes: it is not even decayed, as it has no gradient."""
    network, optimizer = started("adamw", earlier=0)
    network.register_module("spare", nn.Identity())
    network.spare.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))  # type: ignore[union-attr]
    optimizer.add_param_group({"params": [network.spare.weight]})  # type: ignore[union-attr]
    last = list(network.parameters())[1]
    last.requires_grad_(False)
    learned, seen = Learned(), []
    window = trained(network, optimizer, learned, 2)

    def watched(weights: Weights) -> Tensor:
        seen.append({name: weight.detach() for name, weight in weights.items()})
        return torch.stack([weight.sum() for weight in weights.values()]).sum()

    window.gradients_of(watched, network, LOSSES, {"brightness": learned.parameters["brightness"]})
    now = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    assert seen[0].keys() == now.keys()
    assert all(relative(seen[0][name], value) < 1e-12 for name, value in now.items())
    assert torch.equal(seen[0]["spare.weight"], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["nesterov", "adamw", "lamb"])
def test_a_stored_window_goes_on_bit_for_bit(kind: str) -> None:
    """Stored after two of three updates, by what a checkpoint can hold; network and optimizer have moved on since."""
    network, optimizer = started(kind)
    learned = Learned()
    window = trained(network, optimizer, learned, 2)
    stored = io.BytesIO()
    torch.save(window.state_dict(), stored)
    stored.seek(0)
    samples = [partial(learned.samples, turn) for turn in range(2)]
    named = list(network.named_parameters())
    plain = Window.from_state(optimizer, named, torch.load(stored, weights_only=True), samples)
    stored.seek(0)
    given = [update["settings"] for update in torch.load(stored, weights_only=True)["updates"]]
    settings = [partial(lambda groups: groups, groups) for groups in given]
    state = window.state_dict()
    learning = Window.from_state(optimizer, named, state, samples, settings)
    last = train(network, optimizer, learned, 2)
    for each in (window, plain, learning):
        each.add(partial(learned.samples, 2), seed=SEED + 2, total=N, settings=last)
    v = validation_gradient(network)
    parameters = {name: p for name, p in learned.parameters.items() if name != "rate"}
    first, *others = (each.gradients(network, LOSSES, v, parameters) for each in (window, plain, learning))
    assert len(plain) == 3
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_settings_that_change_later_do_not_change_the_window() -> None:
    network, optimizer = started("momentum")
    window = Window(optimizer, network.named_parameters())
    window.add(partial(Learned().samples, 0), seed=0, total=N, settings=optimizer.param_groups)
    optimizer.param_groups[0]["lr"] = 9.0
    (update,) = window.state_dict()["updates"]
    assert update["settings"][0]["lr"] == 0.3
    assert "params" not in update["settings"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["momentum", "adamw"])
def test_memory_is_flat_over_two_hundred_windows(kind: str) -> None:
    """Live tensors with the cycle collector off: no window leaves a graph, or anything else, to it."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * nets.SIDE**2, 4), nn.Tanh(), nn.Linear(4, nets.CLASSES)
    ).double()
    optimizer, learned, counts = KINDS[kind](network.parameters()), Learned(), []
    gc.collect()
    gc.disable()
    try:
        for number in range(200):
            window = trained(network, optimizer, learned, 2)
            window.gradients(network, LOSSES, validation_gradient(network), learned.parameters)
            if number % 50 == 9:
                counts.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    finally:
        gc.enable()
    assert len(counts) == 4
    assert max(counts) <= counts[0], counts


def test_wrong_arguments_are_named() -> None:
    network, optimizer = started("momentum")
    window, parameters = Window(optimizer, network.named_parameters()), Learned().parameters
    v = validation_gradient(network)
    with pytest.raises(ValueError, match="add at least one"):
        window.gradients(network, LOSSES, v, parameters)
    with pytest.raises(ValueError, match="differ in 1 names: other"):
        window.gradients(network, LOSSES, {**v, "other": torch.ones(1)}, parameters)
    with pytest.raises(ValueError, match=r"NAdam cannot be differentiated; use SGD, .*Lamb$"):
        Window(torch.optim.NAdam(network.parameters()), network.named_parameters())
    sample = partial(Learned().samples, 0)
    window.add(sample, seed=0, total=N, settings=optimizer.param_groups)
    state = window.state_dict()
    with pytest.raises(ValueError, match="1 updates needs as many samples and settings, found 0 samples and 1"):
        Window.from_state(optimizer, network.named_parameters(), state, [])
    other, its_optimizer = started("momentum", "dropout")
    with pytest.raises(ValueError, match="other weights"):
        Window.from_state(its_optimizer, other.named_parameters(), state, [sample])

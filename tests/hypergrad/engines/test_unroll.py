"""K unrolled steps against hand-written double backward and the one-step formula, and what they leave alone."""

import gc
import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import higher
import pytest
import torch
from timm.optim.lamb import Lamb
from timm.optim.sgdw import SGDW
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.engines.reverse import reverse
from fastaug.hypergrad.engines.unroll import Forward, unroll
from fastaug.hypergrad.optimizer_jacobians.recorded_step import record_step
from fastaug.hypergrad.problem import Problem, Samples, pull_back
from fastaug.targets import SoftTarget, hard_target, soft_cross_entropy

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

COUNT, SIDE, CLASSES = 6, 6, 3


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """BatchNorm and dropout between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.tanh(self.norm(self.conv(x))).mean((2, 3))))
        return out


def losses(logits: Tensor, target: SoftTarget) -> Tensor:
    return soft_cross_entropy(logits, target, reduction="none")


def started(earlier: int = 2, **kwargs: Any) -> tuple[nn.Module, SGD]:
    """A network with two parameter groups, after `earlier` real steps."""
    torch.manual_seed(0)
    network = Net().double()
    biases = [p for p in network.parameters() if p.ndim == 1]
    weights = [p for p in network.parameters() if p.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": biases, "weight_decay": 0.0}, {"params": weights}]
    optimizer = SGD(groups, **{"lr": 0.3, **kwargs})
    for turn in range(earlier):
        optimizer.zero_grad()
        images, labels = batch(50 + turn)
        losses(network(images), hard_target(labels)).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return network, optimizer


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (COUNT,), generator=generator)


def phi() -> dict[str, Tensor]:
    """A curve of the grey values, a softening and loss weights, shared by all steps."""
    weights = 0.5 + torch.rand(COUNT, generator=torch.Generator().manual_seed(1))
    parts = {"curve": torch.tensor(0.3), "softening": torch.tensor(0.4), "weights": weights}
    return {name: part.double().requires_grad_() for name, part in parts.items()}


def samples(step: int, parameters: dict[str, Tensor]) -> Samples:
    curve, softening, weights = parameters.values()
    images, labels = batch(step)
    target = hard_target(labels, weights * torch.sigmoid(softening))
    return Samples(images + curve * images**2, target._replace(mass=target.mass.double() * softening))


def validation(forward: Forward) -> Tensor:
    images, labels = batch(99)
    return torch.nn.functional.cross_entropy(forward(images), labels)


def by_hand(
    network: nn.Module, optimizer: SGD, parameters: dict[str, Tensor], steps: int, max_norm: float | None = None
) -> dict[str, Tensor]:
    """torch's SGD written out on autograd's graph, and its clipping."""
    weights = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    group_of = {
        name: g
        for g in optimizer.param_groups
        for name, p in network.named_parameters()
        if any(p is q for q in g["params"])
    }
    buffers = {name: optimizer.state.get(p, {}).get("momentum_buffer") for name, p in network.named_parameters()}

    def logits(images: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        copies = {name: b.clone() for name, b in network.named_buffers()}
        out: Tensor = functional_call(network, {**weights, **copies}, (images,))
        return out

    for step in range(steps):
        batch_of = samples(step, parameters)
        loss = losses(logits(batch_of.images, step), batch_of.target).sum() / COUNT
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        norm = torch.stack([(g**2).sum() for g in gradients]).sum().sqrt()
        scale = 1.0 if max_norm is None or norm < max_norm else max_norm / (norm + 1e-6)
        for name, g in zip(list(weights), gradients, strict=True):
            group, buffer = group_of[name], buffers[name]
            total = g * scale + group["weight_decay"] * weights[name]
            if group["momentum"]:
                first = buffer is None
                buffers[name] = total if first else group["momentum"] * buffer + (1 - group["dampening"]) * total
                total = total + group["momentum"] * buffers[name] if group["nesterov"] else buffers[name]
            weights[name] = weights[name] - group["lr"] * total
    found = torch.autograd.grad(validation(lambda images: logits(images, steps)), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "dampening": {"momentum": 0.9, "dampening": 0.4},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}


def close(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert list(found) == list(truth)
    for name, b in truth.items():
        assert b.norm() > 0, name
        assert (found[name] - b).norm() <= tolerance * b.norm(), name


@pytest.mark.parametrize("max_norm", [None, 0.05, 100.0], ids=["no clip", "clipped", "below the clip"])
@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_one_step_formula(kind: str, earlier: int, max_norm: float | None) -> None:
    """The same number as the direction of the real, recorded step through the one-step engines."""
    network, optimizer = started(earlier, **KINDS[kind])
    parameters = phi()
    found = unroll(
        network,
        optimizer,
        [lambda: samples(0, parameters)],
        losses,
        validation,
        parameters,
        total=COUNT,
        max_norm=max_norm,
    )
    step = samples(0, parameters)
    buffers = {name: b.clone() for name, b in network.named_buffers()}
    torch.manual_seed(0)
    (losses(functional_call(network, buffers, (step.images.detach(),)), step.target).sum() / COUNT).backward(
        inputs=list(network.parameters())
    )
    norm = clip_grad_norm_(network.parameters(), max_norm or 1e9)
    recorded = record_step(optimizer, network.named_parameters(), norm=norm, max_norm=max_norm)
    optimizer.step()
    torch.manual_seed(1)
    names = [name for name, _ in network.named_parameters()]
    after = validation(lambda images: functional_call(network, {n: b.clone() for n, b in buffers.items()}, (images,)))
    v = dict(zip(names, torch.autograd.grad(after, list(network.parameters())), strict=True))
    for engine in (forward, reverse):
        step = samples(0, parameters)
        problem = Problem(network, recorded.weights, step, losses, COUNT)
        close(found, pull_back(step, engine(problem, recorded.direction(v), images=True), parameters))


@pytest.mark.parametrize("earlier", [0, 2])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_several_steps_by_hand(kind: str, steps: int, earlier: int) -> None:
    network, optimizer = started(earlier, **KINDS[kind])
    parameters = phi()
    makes: list[Any] = [lambda k=k: samples(k, parameters) for k in range(steps)]
    found = unroll(network, optimizer, makes, losses, validation, parameters, total=COUNT)
    close(found, by_hand(network, optimizer, parameters, steps))


def test_several_clipped_steps_by_hand() -> None:
    network, optimizer = started(**KINDS["momentum"])
    parameters = phi()
    steps = [samples(k, parameters) for k in range(3)]
    found = unroll(network, optimizer, steps, losses, validation, parameters, total=COUNT, max_norm=0.05)
    close(found, by_hand(network, optimizer, parameters, 3, max_norm=0.05))


def test_steps_as_samples_may_share_a_graph() -> None:
    """exp() saves its result for backward, which three separate walks would need three times."""
    network, optimizer = started()
    root = torch.zeros(COUNT, dtype=torch.float64, requires_grad=True)
    shared = root.exp()
    steps = [Samples(batch(k)[0], hard_target(batch(k)[1], shared)) for k in range(3)]
    found = unroll(network, optimizer, steps, losses, validation, {"root": root}, total=COUNT)["root"]
    assert found.isfinite().all()
    assert found.any()


def test_score_function_as_in_one_step() -> None:
    """Probabilities of drawn operations count by each sample's share, as in the engines; baseline over all samples."""
    network, optimizer = started(earlier=0)
    theta = torch.randn(COUNT, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    images, labels = batch(0)
    weight = torch.ones(COUNT, dtype=torch.float64)
    step = Samples(images, hard_target(labels, weight), theta.sigmoid().log())
    found = unroll(network, optimizer, [step], losses, validation, {"theta": theta}, total=COUNT)
    leaf = weight.clone().requires_grad_()
    plain = Samples(images, hard_target(labels, leaf))
    share = unroll(network, optimizer, [plain], losses, validation, {"leaf": leaf}, total=COUNT)["leaf"]
    others = (share.sum() - share) / (COUNT - 1)
    close(found, {"theta": (share - others) * (1 - theta.detach().sigmoid())})


def test_learned_settings_of_the_optimizer() -> None:
    """d validation / d lr over two steps, by differences."""
    network, optimizer = started(**KINDS["momentum"])
    steps = [samples(k, {n: p.detach() for n, p in phi().items()}) for k in range(2)]

    def value(lr: float) -> tuple[Tensor, Tensor]:
        rate = torch.tensor(lr, dtype=torch.float64, requires_grad=True)
        seen = []

        def watched(forward: Forward) -> Tensor:
            seen.append(validation(forward))
            return seen[0]

        learned = {"rate": rate}
        found = unroll(network, optimizer, steps, losses, watched, learned, total=COUNT, hyperparameters={"lr": [rate]})
        return seen[0].detach(), found["rate"]

    slope = (value(0.3 + 1e-5)[0] - value(0.3 - 1e-5)[0]) / 2e-5
    close({"rate": value(0.3)[1]}, {"rate": slope}, 1e-7)


def test_parameters_in_the_validation_itself_count_directly() -> None:
    network, optimizer = started()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    images, labels = batch(0)
    seen: list[Tensor] = []

    def scaled(forward: Forward) -> Tensor:
        seen.append(validation(forward))
        return seen[0] * scale

    step = Samples(images, hard_target(labels))
    found = unroll(network, optimizer, [step], losses, scaled, {"scale": scale}, total=COUNT)
    torch.testing.assert_close(found["scale"], seen[0].detach())


def test_everything_else_stays_as_it_is() -> None:
    network, optimizer = started(**KINDS["nesterov"])
    for p in network.parameters():
        p.grad = torch.full_like(p, 7.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in network.parameters()]
    random, parameters = torch.get_rng_state(), phi()
    steps = [samples(k, parameters) for k in range(2)]
    unroll(network, optimizer, steps, losses, validation, parameters, total=COUNT)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all((p.grad == 7).all() and p.is_leaf and p.requires_grad for p in network.parameters())  # type: ignore[union-attr]
    after = [optimizer.state[p]["momentum_buffer"] for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(buffers, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in parameters.values())


def test_frozen_weights_stay_frozen() -> None:
    network, optimizer = started()
    network.conv.weight.requires_grad_(False)  # type: ignore[union-attr]
    parameters = phi()
    steps = [samples(k, parameters) for k in range(2)]
    found = unroll(network, optimizer, steps, losses, validation, parameters, total=COUNT)
    assert all(f.any() for f in found.values())
    assert not network.conv.weight.requires_grad  # type: ignore[union-attr]


def test_memory_is_flat_over_calls() -> None:
    """Live tensors after each call, with the cycle collector off: no graph is left to it (higher#6, #37, #138)."""
    network, optimizer = started(**KINDS["momentum"])
    parameters = phi()
    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(8):
            steps = [samples(k, parameters) for k in range(2)]
            unroll(network, optimizer, steps, losses, validation, parameters, total=COUNT)
            counts.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    finally:
        gc.enable()
    turns = torch.arange(len(counts) - 2, dtype=torch.float64)
    slope = torch.cov(torch.stack([turns, torch.tensor(counts[2:], dtype=torch.float64)]))[0, 1] / turns.var()
    assert abs(slope) < 0.5, counts


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop, Lamb])
def test_other_optimizers_are_unrolled_as_they_are(kind: Callable[..., Optimizer]) -> None:
    """d validation / d curve over two steps against differences of two real steps of the real optimizer."""
    network, _ = started(0)
    network.drop.p = 0.0  # type: ignore[union-attr, assignment]
    parameters = phi()

    def retaken(curve: float) -> Tensor:
        copy = deepcopy(network)
        optimizer = kind(copy.parameters(), lr=0.01, eps=1e-4)
        for turn in range(2):
            given = {n: p.detach() for n, p in parameters.items()} | {"curve": torch.tensor(curve, dtype=torch.float64)}
            step = samples(turn, given)
            optimizer.zero_grad()
            (losses(copy(step.images), step.target).sum() / COUNT).backward()
            optimizer.step()
        return validation(copy).detach()

    optimizer = kind(network.parameters(), lr=0.01, eps=1e-4)
    steps = [samples(k, parameters) for k in range(2)]
    learned = {"curve": parameters["curve"]}
    found = unroll(network, optimizer, steps, losses, validation, learned, total=COUNT)
    at = parameters["curve"].item()
    close(found, {"curve": (retaken(at + 3e-6) - retaken(at - 3e-6)) / 6e-6}, 1e-6)


def test_why_nothing_but_sgd_goes_through_higher() -> None:
    """When one of these fails, higher has caught up and may take over."""
    network, _ = started(0)
    assert not {AdamW, Lamb, SGDW} & higher.optim._opt_mapping.keys()
    with pytest.warns(UserWarning, match="gradient correctness issues"):
        higher.optim.DifferentiableRMSprop(RMSprop(network.parameters()), network.parameters())
    images, labels = batch(0)
    optimizer = Adam(network.parameters(), lr=0.1, eps=0.1)
    theirs = higher.optim.DifferentiableAdam(optimizer, network.parameters())
    loss = losses(network(images), hard_target(labels)).mean()
    after = theirs.step(loss, params=network.parameters())
    for p, g in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True):
        p.grad = g
    optimizer.step()
    apart = [(a - p).norm() / p.norm() for a, p in zip(after, network.parameters(), strict=True)]
    assert max(apart) > 1e-3


def test_wrong_arguments_are_named() -> None:
    network, optimizer = started(0)
    step, parameters = samples(0, phi()), phi()
    with pytest.raises(ValueError, match="at least one"):
        unroll(network, optimizer, [], losses, validation, parameters, total=COUNT)
    with pytest.raises(ValueError, match="need 2 seeds, found 1"):
        unroll(network, optimizer, [step], losses, validation, parameters, total=COUNT, seeds=[0])
    climbing = SGD(network.parameters(), lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="NAdam cannot be differentiated; use SGD"):
        unroll(network, torch.optim.NAdam(network.parameters()), [step], losses, validation, parameters, total=COUNT)
    with pytest.raises(ValueError, match="maximize"):
        unroll(network, climbing, [step], losses, validation, parameters, total=COUNT)
    scored = samples(1, phi())._replace(log_probability=torch.zeros(COUNT))
    with pytest.raises(ValueError, match="some steps have log_probability"):
        unroll(network, optimizer, [step, scored], losses, validation, parameters, total=COUNT)


def test_higher_compiles_without_its_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python warns once, as it compiles a fresh installation; where warnings are errors the import would end there."""
    source = importlib.util.find_spec("higher")
    assert source is not None
    assert source.origin is not None
    shutil.copytree(Path(source.origin).parent, tmp_path / "higher", ignore=shutil.ignore_patterns("__pycache__"))
    for name in [
        name for name in sys.modules if name.split(".")[0] == "higher" or name == "fastaug.hypergrad.engines.unroll"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    fresh = importlib.import_module("fastaug.hypergrad.engines.unroll")
    assert str(tmp_path) in sys.modules[fresh.DifferentiableSGD.__module__].__file__  # type: ignore[operator]

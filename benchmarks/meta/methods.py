"""One training step and its hypergradient by fastaug's own engines, on the task of `task.py`."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.meta.task import Step, Task, flat, plain, train
from fastaug.hypergrad import hypergradient
from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.unroll import unroll
from fastaug.hypergrad.optimizer_jacobians.recorded_step import record_step
from fastaug.hypergrad.problem import Problem, Samples, Weights, eager_logits, pull_back
from fastaug.targets import SoftTarget, hard_target, soft_cross_entropy

Builder = Callable[[Task], Step]


def losses(logits: Tensor, target: SoftTarget) -> Tensor:
    """Weight times cross-entropy, [N]."""
    return soft_cross_entropy(logits, target, reduction="none")


def samples(task: Task) -> Samples:
    """The batch on the graph of the meta-parameters."""
    target = hard_target(task.labels, task.weights)
    return Samples(task.augmented(), target._replace(mass=target.mass.to(task.weights.dtype)))


def named(task: Task) -> dict[str, Tensor]:
    """The meta-parameters of the task by name."""
    return dict(zip(("weights", "magnitudes"), task.parameters(), strict=False))


def trained(network: nn.Module, optimizer: SGD, task: Task, batch: Samples) -> tuple[Problem, Weights, Tensor]:
    """One real step: what it was, its direction u = (dU/dg)^T grad L_val(w'), and its logits."""
    logits = network(batch.images.detach())
    weight = batch.target.weight.detach()
    (losses(logits, batch.target._replace(weight=weight)).sum() / len(logits)).backward()
    recorded = record_step(optimizer, network.named_parameters())
    optimizer.step()
    optimizer.zero_grad()
    leaves = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    seen = eager_logits(network, leaves, task.meta_images, 0, torch.enable_grad, twice=False)
    v = torch.autograd.grad(task.validation(seen), list(leaves.values()))
    direction = recorded.direction(dict(zip(leaves, v, strict=True)))
    return Problem(network, recorded.weights, batch, losses, len(logits)), direction, logits.detach()


def by_engine(engine: str, task: Task) -> Step:
    """A step, then the hypergradient by an engine of that name."""
    network, optimizer = task.start()

    def step() -> Tensor:
        problem, direction, _ = trained(network, optimizer, task, samples(task))
        return flat(list(hypergradient(problem, direction, named(task), engine).values()))

    return step


def one_sided(task: Task) -> Step:
    """A finite difference that takes the training step's own logits for one of its sides, as training does."""
    network, optimizer = task.start()

    def step() -> Tensor:
        batch = samples(task)
        problem, direction, logits = trained(network, optimizer, task, batch)
        cotangent = difference(problem, direction, images=batch.images.requires_grad, logits=logits)
        return flat(list(pull_back(batch, cotangent, named(task)).values()))

    return step


def unrolled(updates: int, task: Task) -> Step:
    """Updates unrolled by `unroll`, which changes nothing, and then the real ones."""
    network, optimizer = task.start()

    def step() -> Tensor:
        found = unroll(
            network,
            optimizer,
            [lambda: samples(task)] * updates,
            losses,
            lambda forward: task.validation(forward(task.meta_images)),
            named(task),
            total=len(task.labels),
        )
        for _ in range(updates):
            train(network, optimizer, task)
        return flat(list(found.values()))

    return step


METHODS: Mapping[str, Builder] = MappingProxyType(
    {
        "plain": plain,
        "ours forward": partial(by_engine, "forward"),
        "ours functional": partial(by_engine, "functional"),
        "ours reverse": partial(by_engine, "reverse"),
        "ours difference": one_sided,
        "ours difference central": partial(by_engine, "difference"),
        "ours unroll": partial(unrolled, 1),
        "ours unroll 3 updates": partial(unrolled, 3),
    }
)

"""The same step and hypergradient by other libraries, written as their documentation and examples do.

Each makes its own update of the network the real one, which none of them has to pay twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.meta.task import Step, Task, flat


def higher_step(updates: int, task: Task) -> Step:
    """higher: the steps inside `innerloop_ctx`, the validation loss differentiated through them."""
    import higher

    network, optimizer = task.start()

    def step() -> Tensor:
        with higher.innerloop_ctx(network, optimizer) as (inner, differentiable):
            for _ in range(updates):
                differentiable.step(task.loss(inner(task.augmented())))
            found = torch.autograd.grad(task.validation(inner(task.meta_images)), task.parameters())
            keep(network, optimizer, inner, differentiable)
        return flat(found)

    return step


@torch.no_grad()
def keep(network: nn.Module, optimizer: SGD, inner: Any, differentiable: Any) -> None:
    """Takes over the weights, momentum and BatchNorm statistics that higher's copies have come to."""
    for weight, fast in zip(network.parameters(), inner.fast_params, strict=True):
        weight.copy_(fast)
    for group, states in zip(optimizer.param_groups, differentiable.state, strict=True):
        for number, weight in enumerate(group["params"]):
            optimizer.state[weight]["momentum_buffer"].copy_(states[number]["momentum_buffer"])
    for buffer, moved in zip(network.buffers(), inner.buffers(), strict=True):
        buffer.copy_(moved)


def torchopt_step(task: Task) -> Step:
    """TorchOpt: `MetaSGD` steps on the graph, which `stop_gradient` cuts after each hypergradient."""
    import torchopt  # type: ignore[import-not-found]

    network = task.network()
    optimizer = torchopt.MetaSGD(network, lr=task.setting.lr, momentum=task.setting.momentum)

    def descend() -> None:
        optimizer.step(task.loss(network(task.augmented())))

    def cut() -> None:
        torchopt.stop_gradient(network)
        torchopt.stop_gradient(optimizer)

    def step() -> Tensor:
        descend()
        found = torch.autograd.grad(task.validation(network(task.meta_images)), task.parameters())
        cut()
        return flat(found)

    descend()  # to where the other methods start: its optimizer takes no state from outside
    cut()
    return step


def betty_step(kind: str, task: Task) -> Step:
    """betty: two `ImplicitProblem`s, one unrolled step; `kind`: darts or sama. Both leave out lr, given back here."""
    from betty.configs import Config, EngineConfig  # type: ignore[import-not-found]
    from betty.engine import Engine  # type: ignore[import-not-found]
    from betty.problems import ImplicitProblem  # type: ignore[import-not-found]

    network, optimizer = task.start()
    found: list[Tensor] = []

    class Outer(ImplicitProblem):
        def get_batch(self) -> tuple[Tensor, ...]:
            return (task.meta_images,)

        def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:
            return task.validation(self.inner(*batch))

        def grad_callback(self) -> None:
            found[:] = [p.grad for p in self.trainable_parameters()]

    class Inner(ImplicitProblem):
        def get_batch(self) -> tuple[Tensor, ...]:
            return ()

        def training_step(self, batch: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002 - the images are on a graph
            return task.loss(self.module(task.augmented()))

    still = SGD(task.parameters(), lr=0.0)
    outer = Outer("outer", Config(retain_graph=True), nn.ParameterList(task.parameters()), still)
    inner = Inner("inner", Config(type=kind, unroll_steps=1), network, optimizer)
    links = {"u2l": {outer: [inner]}, "l2u": {inner: [outer]}}
    engine = Engine([outer, inner], EngineConfig(strategy="cpu"), links)
    inner.optimizer.load_state_dict(optimizer.state_dict())  # the engine has made a new optimizer
    engine.train()

    def step() -> Tensor:
        engine.global_step += 1
        engine.train_step()
        return task.setting.lr * flat(found)

    return step


@dataclass(frozen=True)
class Peer:
    """The modules to import, the distribution whose version counts, and what makes the steps."""

    modules: tuple[str, ...]
    distribution: str
    build: Callable[[Task], Step]


BETTY = ("betty.configs", "betty.engine", "betty.problems")
UPDATES = {"ours unroll 3 updates": 3, "higher 3 updates": 3}  # of a method's step, where it is not one
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "higher": Peer(("higher",), "higher", partial(higher_step, 1)),
        "higher 3 updates": Peer(("higher",), "higher", partial(higher_step, 3)),
        "torchopt": Peer(("torchopt",), "torchopt", torchopt_step),
        "betty darts": Peer(BETTY, "betty-ml", partial(betty_step, "darts")),
        "betty sama": Peer(BETTY, "betty-ml", partial(betty_step, "sama")),
    }
)

"""What one parameter group's step says about its derivatives, and those of SGD.

A rule takes q = dL_val/dw' of a group to dL_val/dg, g being the gradient that the optimizer got, by the optimizer's
state as it is after the step: torch's own step (dampening, bias corrections, the place of eps), differentiated by hand.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = list[Tensor]


class GroupStep(NamedTuple):
    """One parameter group in one step: those of its parameters that had a gradient.

    `settings`: the group's hyperparameters in this step. `weights`: before the step. `gradients`: as they entered the
    update, empty where the rule needs none. `first`: whether this step makes the momentum buffer. `steps` taken and
    `states`, those of optimizer.state, are filled in after the step.
    """

    names: list[str]
    parameters: Tensors
    settings: dict[str, Any]
    weights: Tensors
    gradients: Tensors
    first: list[bool]
    steps: list[float]
    states: list[dict[str, Any]]

    def state(self, name: str) -> Tensors:
        """One state tensor of each parameter, in float32 or better."""
        return lifted([state[name] for state in self.states])

    def pieces(self, q: Tensors, most: int = 1 << 21) -> Iterator[tuple["GroupStep", Tensors]]:
        """The same step and `q` in runs of parameters with about `most` numbers, whose temporaries stay in a cache."""
        start, size = 0, 0
        for end, tensor in enumerate(q, 1):
            size += tensor.numel()
            if size >= most or end == len(q):
                part = slice(start, end)
                lists = {name: getattr(self, name)[part] for name in self._fields if name != "settings"}
                yield self._replace(**lists), q[part]
                start, size = end, 0


class Rule(NamedTuple):
    """How one optimizer's step is differentiated.

    `uses_gradients`: whether dU/dg depends on g. `refusal`: why a group's settings cannot be done, or None.
    `hyperparameters`: <q, dU/dh> by the names of h, or None where that is not implemented.
    """

    uses_gradients: bool
    refusal: Callable[[dict[str, Any]], str | None]
    direction: Callable[[GroupStep, Tensors], Tensors]
    hyperparameters: Callable[[GroupStep, Tensors], dict[str, Tensor]] | None = None


def lifted(tensors: Sequence[Tensor]) -> Tensors:
    """In float32 or better."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """<a, b> over all tensors: a scalar. Reads both once and writes nothing of their size."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def maximizes(settings: dict[str, Any]) -> str | None:
    return "maximize=True" if settings.get("maximize") else None


def cautious(settings: dict[str, Any]) -> str | None:
    return "caution=True (its mask has no useful derivative)" if settings.get("caution") else maximizes(settings)


# ---- SGD: w' = w - lr d, with d = G, the momentum buffer, or (Nesterov) G + momentum * buffer; G = g + weight_decay w


def sgd_direction(step: GroupStep, q: Tensors) -> Tensors:
    """dU/dg is a number per parameter, so neither gradients nor state are read: one pass over q."""
    lr = float(step.settings["lr"])
    return torch._foreach_mul(q, [-lr * c for c in _sgd_slopes(step)])  # type: ignore[return-value]


def _sgd_slopes(step: GroupStep) -> list[float]:
    """dd/dG of each parameter; the first step puts G itself into the buffer, whatever the dampening."""
    momentum, later = float(step.settings["momentum"]), 1 - float(step.settings["dampening"])
    if momentum == 0:
        return [1.0] * len(step.names)
    into_buffer = [1.0 if first else later for first in step.first]
    return [1 + momentum * b for b in into_buffer] if step.settings["nesterov"] else into_buffer


def sgd_hyperparameters(step: GroupStep, q: Tensors) -> dict[str, Tensor]:
    """<q, dU/dh> for lr, weight_decay and, where there is one, momentum: three inner products."""
    lr, momentum, decay = (float(step.settings[name]) for name in ("lr", "momentum", "weight_decay"))
    found = {name: q[0].new_zeros(()) for name in (["lr", "weight_decay"] + ["momentum"] * (momentum != 0))}
    buffers = step.state("momentum_buffer") if momentum else step.gradients
    for i, slope in enumerate(_sgd_slopes(step)):
        along_weights = inner([q[i]], lifted([step.weights[i]]))
        along_g = inner([q[i]], [step.gradients[i]]) + decay * along_weights  # <q, G>
        along_buffer = inner([q[i]], [buffers[i]]) if momentum else along_g
        nesterov = momentum and step.settings["nesterov"]
        found["lr"] -= along_g + momentum * along_buffer if nesterov else along_buffer
        found["weight_decay"] -= lr * slope * along_weights
        if momentum:
            # The buffer before the step, times momentum: 0 in the first step, where G itself became the buffer.
            old = along_buffer - (1.0 if step.first[i] else 1 - float(step.settings["dampening"])) * along_g
            found["momentum"] -= lr * (along_buffer + old if nesterov else old / momentum)
    return found

"""The derivative of a validation loss after one update in all that shaped it: one signature, several engines."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.engines.functional import functional
from fastaug.hypergrad.engines.reverse import reverse
from fastaug.hypergrad.problem import Cotangent, Problem, Weights, pull_back


class Engine(Protocol):
    """The derivative of <direction, grad_w L> in what a Problem's samples hold; in the images only if asked."""

    def __call__(self, problem: Problem, direction: Weights, *, images: bool) -> Cotangent: ...


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {"forward": forward, "functional": functional, "reverse": reverse, "difference": difference}
)


def hypergradient(
    problem: Problem,
    direction: Weights,
    parameters: Sequence[Tensor],
    engine: str = "forward",
    over_processes: Callable[[Tensor], Tensor] = lambda local: local,
) -> list[Tensor]:
    """d <direction, grad_w L> / d parameters, this process's term; the direction is u = (dU/dg)^T grad L_val(w').

    Image gradients are computed only where the images depend on parameters. ValueError for an engine that does not
    exist, a direction that does not fit the weights, or images that `difference` is asked for.
    """
    if engine not in ENGINES:
        raise ValueError(f"no engine is called {engine!r}; known: {', '.join(ENGINES)}")
    wrong = [
        name
        for name in problem.weights.keys() | direction.keys()
        if name not in direction or name not in problem.weights or direction[name].shape != problem.weights[name].shape
    ]
    if wrong:
        raise ValueError(f"direction and weights differ in {len(wrong)} tensors, among them {min(wrong)}")
    samples = problem.samples
    cotangent = ENGINES[engine](problem, direction, images=samples.images.requires_grad)
    return pull_back(samples, cotangent, parameters, over_processes)

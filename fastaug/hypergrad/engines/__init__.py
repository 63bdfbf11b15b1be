"""Engines: ways to compute how <direction, grad_w L> depends on a training batch, all behind one signature."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.engines.functional import functional
from fastaug.hypergrad.engines.reverse import reverse
from fastaug.hypergrad.problem import Cotangent, Problem, Weights


class Engine(Protocol):
    """The derivative of <direction, grad_w L> in what a Problem's samples hold; in the images only if asked.

    `direction` may leave out weights: it is 0 in those.
    """

    def __call__(self, problem: Problem, direction: Weights, *, images: bool) -> Cotangent: ...


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {"forward": forward, "functional": functional, "reverse": reverse, "difference": difference}
)

"""One-step hypergradients dL_val(w')/dphi: how a validation loss after one update depends on all that shaped it.

w' = U(w, grad_w L(w; phi)) is the update, phi what is learned: augmentation, loss weights, labels. `hypergradient` is
the one function, `ENGINES` the ways to compute it; `engines/unroll.py` differentiates several updates. docs/meta.md
derives the formulas.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from fastaug.hypergrad.engines import ENGINES, Engine
from fastaug.hypergrad.problem import Cotangent, Problem, Weights, pull_back

__all__ = ["ENGINES", "Engine", "checked_cotangent", "hypergradient"]


def hypergradient(
    problem: Problem,
    direction: Weights,
    parameters: Mapping[str, Tensor],
    engine: str = "forward",
    over_processes: Callable[[Tensor], Tensor] = lambda local: local,
) -> dict[str, Tensor]:
    """The hypergradient in `parameters`, by name: d <direction, grad_w L> / d parameters, this process's term.

    `direction` is u = (dU/dg)^T grad L_val(w'), by the names of the weights, 0 in those left out; every result has the
    shape of its parameter. `problem` is the training loss of the update, `engine` a name of `ENGINES`, `over_processes`
    sums a tensor over all processes. Image gradients are computed only where the images depend on parameters.
    docs/meta.md derives it. ValueError as `checked_cotangent`.
    """
    return pull_back(problem.samples, checked_cotangent(problem, direction, engine), parameters, over_processes)


def checked_cotangent(problem: Problem, direction: Weights, engine: str) -> Cotangent:
    """What an engine, by its name, says of the samples of `problem`: the first half of `hypergradient`.

    ValueError for an engine that does not exist, a direction of other weights or shapes or of none, or images that
    `difference` is asked for.
    """
    if engine not in ENGINES:
        raise ValueError(f"no engine is called {engine!r}; known: {', '.join(ENGINES)}")
    wrong = [
        name
        for name in direction
        if name not in problem.weights or direction[name].shape != problem.weights[name].shape
    ]
    if wrong:
        raise ValueError(f"direction and weights differ in {len(wrong)} tensors, among them {min(wrong)}")
    if not direction:
        raise ValueError("the direction names no weights: it would be 0 everywhere")
    return ENGINES[engine](problem, direction, images=problem.samples.images.requires_grad)

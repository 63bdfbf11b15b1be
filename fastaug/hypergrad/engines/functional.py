"""The engine `functional`: forward mode by torch.func, for networks where plain dual numbers lack a rule.

Its bookkeeping is slower than that of `forward`. GroupNorm and SiLU, for two, are written out, so that forward mode
over reverse mode exists.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from fastaug.hypergrad.engines.forward import load_formulas, normalised, rescaled, through_loss
from fastaug.hypergrad.problem import Cotangent, Problem, Weights, detached, network_logits


def functional(problem: Problem, direction: Weights, *, images: bool) -> Cotangent:
    """The cotangent by torch.func: jvp of the logits, or of their gradient in the images.

    Without autocast: norms that are written out give tangents of another type than their values under it.
    """
    problem = replace(problem, autocast=nullcontext)
    load_formulas()
    unit, length = normalised(direction)
    inputs, target = problem.samples.images.detach(), detached(problem.samples.target)
    start = {name: problem.weights[name] for name in unit}

    def logits_at(weights: Weights) -> Tensor:
        return network_logits(problem, problem.weights | weights, inputs)

    def loss_at(pixels: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        logits = network_logits(problem, problem.weights | weights, pixels)
        return problem.losses(logits, target).sum() / problem.total, logits

    def image_gradient_at(weights: Weights) -> tuple[Tensor, Tensor]:
        gradient, logits = grad(loss_at, has_aux=True)(inputs, weights)
        return gradient, logits

    def pulled_at(weights: Weights, gradient: Tensor) -> Tensor:
        pull: Callable[[Tensor], tuple[Tensor]]
        _, pull = vjp(lambda pixels: network_logits(problem, problem.weights | weights, pixels), inputs)  # type: ignore[misc]
        return pull(gradient)[0]

    image_tangent = None
    if images and not problem.one_sided:
        (_, z), (image_tangent, tangent) = jvp(image_gradient_at, (start,), (unit,))  # type: ignore[misc]
        return rescaled(through_loss(problem, z, tangent), image_tangent, length)
    with torch.no_grad():
        z, tangent = jvp(logits_at, (start,), (unit,))  # type: ignore[misc]
    found = through_loss(problem, z, tangent)
    if images:  # of the tangent alone, as the tangent of a gradient is not the gradient of the tangent here
        moves = (unit, found.gradient_tangent)
        _, image_tangent = jvp(pulled_at, (start, found.gradient), moves)  # type: ignore[misc]
    return rescaled(found, image_tangent, length)

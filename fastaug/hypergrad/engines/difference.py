"""The engine `difference`: finite differences in the network's weights, where an operation has no derivative.

The gradient in the images is piecewise constant in the gates of a ReLU network, so its difference quotient picks up
jumps: ten times too large, with a random sign. Images are therefore refused.
"""

import torch
from torch import Tensor

from fastaug.hypergrad.engines.forward import normalised
from fastaug.hypergrad.problem import Cotangent, Problem, Weights, network_logits

STEP = 0.01  # |dw|: larger steps leave the linear range, smaller ones drown in float32 (DARTS, Liu et al. 2019, eq. 8)


def difference(
    problem: Problem, direction: Weights, *, images: bool, step: float = STEP, logits: Tensor | None = None
) -> Cotangent:
    """The cotangent by central differences over w +- step u / |u|.

    One-sided from training `logits` [n, C] of the same samples if given. ValueError when `images` are asked for, and
    for losses whose gradient is not the derivative of their values.
    """
    if problem.one_sided:
        raise ValueError("differences of a one-sided loss are not its gradient: use forward, functional or reverse")
    if images:
        raise ValueError(
            "finite differences of image gradients are wrong in networks with kinks (ReLU, max-pooling): "
            "use engine forward, functional or reverse for magnitudes"
        )
    unit, length = normalised(direction)

    def derivatives(distance: float) -> list[Tensor]:
        moved = {name: problem.weights[name] + distance * along for name, along in unit.items()}
        with torch.no_grad():
            z = network_logits(problem, problem.weights | moved, problem.samples.images.detach(), twice=False)
        return loss_derivatives(problem, z)

    plus = derivatives(step)
    minus = derivatives(-step) if logits is None else loss_derivatives(problem, logits.detach())
    scale = length / (2 * step if logits is None else step)
    mass, weight, *rows = [(a - b) * scale for a, b in zip(plus, minus, strict=True)]
    return Cotangent(None, mass, weight, rows[0] if rows else None)


def loss_derivatives(problem: Problem, logits: Tensor) -> list[Tensor]:
    """dL / d (mass, weight, rows if there are any) at `logits`."""
    target = problem.samples.target
    fields = [field for field in (target.mass, target.weight, target.rows) if field is not None]
    leaves = [field.detach().requires_grad_() for field in fields]
    with torch.enable_grad():
        loss = problem.losses(logits, target._replace(**dict(zip(("mass", "weight", "rows"), leaves, strict=False))))
        total = loss.sum() / problem.total
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))

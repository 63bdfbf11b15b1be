"""The engine `forward`: dual numbers, whose tangent of the logits gives all but the images in closed form.

With s = <grad_z L, zdot> of logits z and their tangent zdot, s = <u, grad_w L>, and targets act on s through the loss
alone. Images need the tangent of grad_images L: forward mode over reverse mode. The other order, differentiating a
tangent in reverse, is silently wrong through BatchNorm in training mode (its saved statistics are constants there).
"""

import functools
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad as dual
from torch.nn.utils import get_total_norm

from fastaug.hypergrad.engines.batch_norm import FusedBatchNorm
from fastaug.hypergrad.problem import Cotangent, Problem, Weights, network_logits


class LossDerivatives(NamedTuple):
    """Derivatives of s = <grad_z L, zdot>: in masses, weights and rows, and grad_z L [n, C] with its tangent, ds/dz."""

    mass: Tensor
    weight: Tensor
    rows: Tensor | None
    gradient: Tensor
    gradient_tangent: Tensor


def forward(problem: Problem, direction: Weights, *, images: bool) -> Cotangent:
    """The cotangent in forward mode: one pass of dual numbers, no graph; with `images` also back to the images.

    Layers before the first one that moves have no tangents, and cost what they cost in training.
    """
    load_formulas()
    unit, length = normalised(direction)
    with dual.dual_level(), FusedBatchNorm(), torch.set_grad_enabled(images):
        moving = {name: dual.make_dual(problem.weights[name], along) for name, along in unit.items()}
        weights = problem.weights | moving
        inputs = problem.samples.images.detach().requires_grad_(images)
        logits = network_logits(problem, weights, inputs)
        z, tangent = dual.unpack_dual(logits)
        derivatives = through_loss(problem, z, checked(tangent, "the logits"))
        image_tangent = None
        if images:
            back = dual.make_dual(derivatives.gradient, derivatives.gradient_tangent)
            (gradient,) = torch.autograd.grad(logits, inputs, back)
            image_tangent = checked(dual.unpack_dual(gradient).tangent, "the images' gradient")
    return rescaled(derivatives, image_tangent, length)


@functools.cache
def load_formulas() -> None:
    """Has torch load its forward-mode formulas, which it does at the first dual number, with a warning of its own."""
    with warnings.catch_warnings(), dual.dual_level():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        dual.make_dual(torch.zeros(1), torch.zeros(1))


def normalised(direction: Weights) -> tuple[Weights, Tensor]:
    """direction / |direction|, and |direction| []: all is linear in it, and half precision underflows soon."""
    length = get_total_norm(direction.values())
    scale = 1 / torch.where(length == 0, 1, length)
    return {name: tensor * scale for name, tensor in direction.items()}, length


def checked(tangent: Tensor | None, of: str) -> Tensor:
    """RuntimeError for a tangent that was lost on the way."""
    if tangent is None:
        raise RuntimeError(f"no tangent reached {of}: an operation of the network drops it; use the engine reverse")
    return tangent


def through_loss(problem: Problem, logits: Tensor, tangent: Tensor) -> LossDerivatives:
    """Double backward through the losses alone, at `logits` [n, C] with their `tangent` [n, C]."""
    target = problem.samples.target
    z, mass, weight = (t.detach().requires_grad_() for t in (logits, target.mass, target.weight))
    leaves = [z, mass, weight]
    rows = None if target.rows is None else target.rows.detach().requires_grad_()
    if rows is not None:
        leaves.append(rows)
    with torch.enable_grad():
        losses = problem.losses(z, target._replace(mass=mass, weight=weight, rows=rows))
        (gradient,) = torch.autograd.grad(losses.sum() / problem.total, z, create_graph=True)
        s = (gradient * tangent.detach()).sum()
    found = torch.autograd.grad(s, leaves, allow_unused=True, materialize_grads=True)
    return LossDerivatives(found[1], found[2], None if rows is None else found[3], gradient.detach(), found[0])


def rescaled(derivatives: LossDerivatives, image_tangent: Tensor | None, length: Tensor) -> Cotangent:
    """The cotangent for a direction of this length from that of the unit direction."""
    fields = (image_tangent, derivatives.mass, derivatives.weight, derivatives.rows)
    return Cotangent(*(None if field is None else field.detach() * length for field in fields))  # type: ignore[arg-type]

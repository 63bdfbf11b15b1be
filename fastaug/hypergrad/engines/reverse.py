"""The engine `reverse`: double backward. A reference, and for networks without forward mode."""

import torch

from fastaug.hypergrad.problem import Cotangent, Problem, Weights, network_logits


def reverse(problem: Problem, direction: Weights, *, images: bool) -> Cotangent:
    """The cotangent by double backward of <direction, grad_w L>; keeps the graph of the first pass meanwhile."""
    samples, target = problem.samples, problem.samples.target
    weights = {name: problem.weights[name].detach().requires_grad_() for name in direction}
    parts = {"images": samples.images, "mass": target.mass, "weight": target.weight, "rows": target.rows}
    leaves = {
        name: part.detach().requires_grad_()
        for name, part in parts.items()
        if part is not None and (images or name != "images")
    }
    with torch.enable_grad():
        logits = network_logits(problem, problem.weights | weights, leaves.get("images", samples.images.detach()))
        target = target._replace(**{name: leaf for name, leaf in leaves.items() if name != "images"})
        loss = problem.losses(logits, target).sum() / problem.total
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        slopes = [(direction[name] * g).sum() for name, g in zip(weights, gradients, strict=True)]
        slope = torch.stack(slopes).sum()
    found = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True, materialize_grads=True)
    named = dict(zip(leaves, found, strict=True))
    return Cotangent(named.get("images"), named["mass"], named["weight"], named.get("rows"))

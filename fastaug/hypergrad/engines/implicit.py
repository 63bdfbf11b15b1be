"""Implicit differentiation: a direction for any engine from the inverse Hessian instead of one optimizer step.

At weights w* that minimise the training loss L(w; phi), dL_val/dphi = d/dphi <u, grad_w L> with u = -H^-1 v, H the
Hessian of L (Lorraine, Vicol & Duvenaud 2020, equations 2 and 3). H^-1 v is approximated on a few of the weights.
"""

import math
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from fastaug.hypergrad.problem import Problem, Weights, detached, network_logits

Solver = Literal["neumann", "identity", "cg"]
Product = Callable[[Tensor], Tensor]

GROWTH = 2.0  # of the last term along a direction of negative curvature, up to which a series is short


def implicit_direction(
    problem: Problem,
    v: Weights,
    *,
    solver: Solver = "neumann",
    alpha: float = 0.01,
    terms: int = 5,
    damping: float = 0.0,
    parameters: Sequence[str] | None = None,
    probes: int = 10,
    over_processes: Callable[[Tensor], Tensor] = lambda local: local,
) -> Weights:
    """u = -H^-1 v on the weights of `solved_names`, by name; the others' is 0 and left out, as it may be in `v`.

    `neumann`: -alpha sum_{j<=terms} (1 - alpha H)^j v; `identity`: its first term, -alpha v; `cg`: at most `terms`
    steps of conjugate gradients. `damping` is added to H's diagonal: a coupled weight decay belongs here. `probes`:
    Hessian products spent on asking whether the series converges, 0 to trust that it does. `over_processes` sums a
    tensor over all processes. ValueError: a v that is not finite, a Hessian that `cg` cannot invert, a series that
    diverges (a short one on negative curvature passes, see _refuse_divergence).
    """
    _check(solver, alpha, terms, damping)
    names = solved_names(problem.network, problem.weights, parameters)
    if solver == "identity":
        return {name: -alpha * v[name] for name in names}
    flat = torch.cat([v[name].flatten() for name in names])
    if not flat.isfinite().all():
        raise ValueError("the validation gradient is not finite")
    product = _hessian_product(problem, names, over_processes, damping)
    if solver == "cg":
        solution = _conjugate_gradients(product, flat, terms)
    else:
        if probes:
            _refuse_divergence(product, flat, alpha, terms, damping, probes)
        solution = alpha * _neumann_sum(product, flat, alpha, terms)
    pieces = solution.neg().split([v[name].numel() for name in names])
    return {name: p.view_as(v[name]) for name, p in zip(names, pieces, strict=True)}


def _check(solver: str, alpha: float, terms: int, damping: float) -> None:
    if solver not in ("neumann", "identity", "cg"):
        raise ValueError(f"solver {solver!r} is unknown; use neumann, identity or cg")
    if not alpha > 0 or terms < 0 or damping < 0:
        raise ValueError(f"alpha must be > 0, terms and damping >= 0; found {alpha}, {terms}, {damping}")
    if solver == "cg" and not damping:
        raise ValueError("cg needs damping > 0: the Hessian of a softmax layer is singular")


def solved_names(network: nn.Module, trained: Collection[str], patterns: Sequence[str] | None = None) -> list[str]:
    """The names among `trained` that match `patterns`, by default those of the last linear layer; in their order.

    ValueError where there are none.
    """
    if patterns is None:
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        layers = [layer for layer in linear if _within(layer, "weight") in trained]
        if not layers:
            raise ValueError("the network has no trained linear layer; name the weights by patterns in `parameters`")
        patterns = [_within(layers[-1], leaf) for leaf in ("weight", "bias")]
        return [name for name in trained if name in patterns]
    found = [name for name in trained if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        last = list(trained)[-3:]
        raise ValueError(f"no trained weight matches {list(patterns)}; their names end with {', '.join(last)}")
    return found


def _within(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module else leaf


def _hessian_product(
    problem: Problem, names: list[str], over_processes: Callable[[Tensor], Tensor], damping: float
) -> Product:
    """x -> (H + damping) x on the chosen weights, all flat. The graph, of their layers alone, is kept meanwhile."""
    leaves = {name: problem.weights[name].detach().requires_grad_() for name in names}
    with torch.enable_grad():
        logits = network_logits(problem, {**problem.weights, **leaves}, problem.samples.images.detach())
        loss = problem.losses(logits, detached(problem.samples.target)).sum() / problem.total
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        gradient = torch.cat([g.flatten() for g in gradients])

    def product(x: Tensor) -> Tensor:
        parts = torch.autograd.grad(
            gradient, list(leaves.values()), x.to(gradient.dtype), retain_graph=True, materialize_grads=True
        )
        return over_processes(torch.cat([part.flatten() for part in parts]).to(x.dtype)) + damping * x

    return product


def _neumann_sum(product: Product, v: Tensor, alpha: float, terms: int) -> Tensor:
    """sum_{j<=terms} (1 - alpha H)^j v."""
    term, total = v, v.clone()
    for _ in range(terms):
        term = term - alpha * product(term)
        total += term
    return total


def _refuse_divergence(product: Product, v: Tensor, alpha: float, terms: int, damping: float, probes: int) -> None:
    """ValueError when 1 - alpha H, along what v and noise excite, makes the series diverge.

    Eigenvalues 0 of H, which every softmax layer has, are let pass: v has no part along them, or one that the truncated
    series keeps bounded. So are negative ones, which symmetric losses have, while the last term has grown by GROWTH at
    most: a short series is the derivative of so many steps of gradient descent, whether or not a longer one converges.
    """
    generator = torch.Generator(v.device).manual_seed(0)
    noise = torch.randn(len(v), generator=generator, device=v.device, dtype=v.dtype)
    start = noise / noise.norm() + v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)
    low, high = _extreme_eigenvalues(product, start, probes)
    concave, steep = 1 - alpha * low, alpha * high - 1
    if concave > 1 + 1e-3 and terms * math.log(concave) > math.log(GROWTH):  # the power itself may overflow
        factor, curvature = concave, low - damping
        remedy = f"no alpha converges, as H has the eigenvalue {curvature:.3g}: set damping above {-curvature:.3g}"
    elif steep > 1 + 1e-3:
        factor, remedy = -steep, f"take alpha below {2 / high:.3g}"
    else:
        return
    found = f"1 - alpha H has an eigenvalue of about {factor:.4g}"
    raise ValueError(f"the Neumann series with alpha {alpha:g} diverges: {found}; {remedy}")


def _extreme_eigenvalues(product: Product, start: Tensor, steps: int) -> tuple[float, float]:
    """The least and the greatest eigenvalue as Lanczos sees them after `steps` products: both from within."""
    basis = [start / start.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(steps, len(start))):
        image = product(basis[-1])
        diagonal.append(image @ basis[-1])
        known = torch.stack(basis)
        for _ in range(2):  # once more, as the first pass leaves rounding errors behind
            image = image - known.T @ (known @ image)
        beside.append(image.norm())
        basis.append(image / beside[-1].clamp_min(torch.finfo(image.dtype).tiny))
    off = torch.stack(beside[:-1]) if len(beside) > 1 else start.new_zeros(0)
    found = torch.linalg.eigvalsh(torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1))
    return found[0].item(), found[-1].item()


def _conjugate_gradients(product: Product, v: Tensor, steps: int) -> Tensor:
    """x with (H + damping) x = v (Hestenes & Stiefel 1952); ends early at a residual of 1e-12 |v|."""
    solution, residual, along = torch.zeros_like(v), v.clone(), v.clone()
    size, enough = residual @ residual, 1e-24 * (v @ v)
    for _ in range(steps):
        if size <= enough:
            break
        image = product(along)
        curvature = along @ image
        if curvature <= 0:
            found = (curvature / (along @ along)).item()
            raise ValueError(f"cg found the curvature {found:.3g} <= 0 of the damped Hessian; raise damping")
        step = size / curvature
        solution = solution + step * along
        residual = residual - step * image
        size, before = residual @ residual, size
        along = residual + (size / before) * along
    return solution

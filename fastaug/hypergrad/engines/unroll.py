"""K optimizer steps unrolled through `higher`, and the validation loss after them differentiated back to the samples.

Truncated back-propagation through time: the K steps begin at the present weights and optimizer state, which count as
constants. Exact for what it unrolls; K = 1 is the hypergradient of the one-step engines. Memory holds K graphs.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fastaug.hypergrad.optimizer_jacobians.recorded_step import bare_optimizer
from fastaug.hypergrad.problem import Cotangent, Losses, Samples, detached, eager_logits, pull_back
from fastaug.targets import SoftTarget

with warnings.catch_warnings():
    # What Python says of higher 0.2.1 when it compiles it for the first time: a comparison by `is`, a stray backslash.
    for category in (SyntaxWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", '"is" with|.*invalid escape sequence', category)
    from higher.optim import DifferentiableSGD

Step = Samples | Callable[[], Samples]
Forward = Callable[[Tensor], Tensor]  # images -> logits at the weights after the last step

REASONS: dict[type[Optimizer], str] = {
    Adam: "higher's Adam adds eps before the bias correction, torch's after it",
    AdamW: "higher has no AdamW",
    RMSprop: "higher itself says that the gradients of its RMSprop are wrong",
}


def unroll(
    network: nn.Module,
    optimizer: Optimizer,
    steps: Sequence[Step],
    losses: Losses,
    validation: Callable[[Forward], Tensor],
    parameters: Sequence[Tensor],
    *,
    total: int,
    max_norm: float | None = None,
    hyperparameters: dict[str, list[Tensor]] | None = None,
    seeds: Sequence[int] | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[Tensor]:
    """Gradient of `validation` after the `steps` in each of `parameters`; network and optimizer stay as they are.

    A step trains on its samples with sum_i losses_i / total, clipped to `max_norm`. `hyperparameters`: tensors for the
    optimizer's settings by name, one or one per group; `parameters` may hold them. `seeds` of dropout: each step's and
    the validation's; default 0, 1, ... Forward passes begin with the network's own buffers. For one process.
    ValueError: no steps, not SGD.
    """
    inner = bare_optimizer(optimizer)
    _check(inner, steps, seeds)
    seeds = range(len(steps) + 1) if seeds is None else seeds
    samples = [step if isinstance(step, Samples) else step() for step in steps]
    leaves = _leaves(samples)
    names = [name for name, _ in network.named_parameters()]

    def logits(weights: Sequence[Tensor], images: Tensor, seed: int) -> Tensor:
        return eager_logits(network, dict(zip(names, weights, strict=True)), images, seed, autocast, twice=True)

    with torch.enable_grad():
        clip = None if max_norm is None else _clip_to(max_norm)
        stepper = DifferentiableSGD(inner, network.parameters(), override=hyperparameters, grad_callback=clip)
        weights = [p.detach().requires_grad_(p.requires_grad) for p in network.parameters()]
        for leaf, seed in zip(leaves, seeds, strict=False):
            loss = losses(logits(weights, leaf.images, seed), leaf.target).sum() / total
            weights = stepper.step(loss, params=weights)
        value = validation(lambda images: logits(weights, images, seeds[-1]))
    return _differentiated(value, samples, leaves, parameters)


def _check(optimizer: Optimizer, steps: Sequence[Step], seeds: Sequence[int] | None) -> None:
    if not steps:
        raise ValueError("there is no step to unroll; give at least one")
    if seeds is not None and len(seeds) != len(steps) + 1:
        raise ValueError(f"{len(steps)} steps and the validation need {len(steps) + 1} seeds, found {len(seeds)}")
    kind = type(optimizer)
    if kind is not SGD:
        reason = REASONS.get(kind, f"higher has no {kind.__name__}")
        raise ValueError(f"steps of {kind.__name__} cannot be unrolled: {reason}; use SGD, or one-step engines")
    if any(group["maximize"] for group in optimizer.param_groups):
        raise ValueError("steps of SGD with maximize=True cannot be unrolled: higher ignores it; turn the loss around")


def _clip_to(max_norm: float) -> Callable[[Sequence[Tensor | None]], list[Tensor | None]]:
    """clip_grad_norm_, but differentiable (torch's takes the norm for a constant); None where there is no gradient."""

    def clipped(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients if g is not None]))
        scale = (max_norm / (norm + 1e-6)).clamp(max=1)
        return [None if g is None else g * scale for g in gradients]

    return clipped


def _leaves(steps: Sequence[Samples]) -> list[Samples]:
    """The same values at the root of a new graph: the policy's own is then gone through once, whatever K."""
    learned = any(samples.images.requires_grad for samples in steps)
    leaves = []
    for samples in steps:
        target = detached(samples.target)
        for part in (target.mass, target.weight, target.rows):
            if part is not None:
                part.requires_grad_()
        leaves.append(Samples(samples.images.detach().requires_grad_(learned), target))
    return leaves


def _differentiated(
    value: Tensor, steps: Sequence[Samples], leaves: Sequence[Samples], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """d value / d parameters: through the samples of the steps, and where value has them directly."""
    inputs = [part for leaf in leaves for part in _parts(leaf)]
    found = torch.autograd.grad(value, [*inputs, *parameters], allow_unused=True, materialize_grads=True)
    slopes = {id(part): slope for part, slope in zip(inputs, found, strict=False)}
    acted = pull_back(_joined(steps), _cotangent(leaves, slopes), parameters)
    return [through + direct for through, direct in zip(acted, found[len(inputs) :], strict=True)]


def _parts(leaf: Samples) -> list[Tensor]:
    """What is differentiated: images where any step's are learned, masses, weights and rows."""
    parts = (leaf.images, leaf.target.mass, leaf.target.weight, leaf.target.rows)
    return [part for part in parts if part is not None and part.requires_grad]


def _joined(steps: Sequence[Samples]) -> Samples:
    """The samples of all steps as one batch; images only where they are learned."""
    rows, scores = [s.target.rows for s in steps], [s.log_probability for s in steps]
    for name, parts in (("rows", rows), ("log_probability", scores)):
        if len({part is None for part in parts}) > 1:
            raise ValueError(f"some steps have {name} and others do not; give it for all or for none")
    images = [s.images for s in steps]
    targets = zip(*(s.target for s in steps), strict=True)
    return Samples(
        torch.cat(images) if any(i.requires_grad for i in images) else images[0],
        SoftTarget(*map(_all, targets)),  # type: ignore[arg-type]
        _all(scores),
    )


def _cotangent(leaves: Sequence[Samples], slopes: dict[int, Tensor]) -> Cotangent:
    """That of `_joined`."""
    targets = [leaf.target for leaf in leaves]
    parts = ([leaf.images for leaf in leaves], *([getattr(t, n) for t in targets] for n in ("mass", "weight", "rows")))
    return Cotangent(*(_all([slopes.get(id(part)) for part in of]) for of in parts))  # type: ignore[arg-type]


def _all(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(cast(list[Tensor], list(parts)))

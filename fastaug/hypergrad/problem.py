"""The interface of the engines: Problem in, Cotangent out; and from a Cotangent to the hypergradient.

One update w' = U(w, g) of weights w with g = grad_w L(w; phi), and v = grad L_val(w'). The exact hypergradient of one
step is d L_val/d phi = d/d phi <u, g(w; phi)> with u = (dU/dg)^T v. phi acts on L through what `Samples` holds only:
images, masses, loss weights and rows of soft labels, and the probability of having drawn these operations. So an
engine returns the derivative of <u, g> in those, its `Cotangent`, and `pull_back` hands it on to any phi. docs/meta.md
derives the formulas.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastaug.hypergrad.written_out import WrittenOut
from fastaug.targets import SoftTarget

Weights = dict[str, Tensor]  # by the names of network.named_parameters(), those that are trained
Losses = Callable[[Tensor, SoftTarget], Tensor]  # logits [n, C], target -> weight_i l_i, [n]


class Samples(NamedTuple):
    """The n training samples of a differentiated training loss, as the network saw them.

    `images` [n, 3, S, S], normalised, and `target` may be on autograd's graph of the meta-parameters; `log_probability`
    [n], in nats, is that of the operations drawn for each sample, on the graph of their probabilities, or None.
    """

    images: Tensor
    target: SoftTarget
    log_probability: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """The training loss L(w) = sum_i losses_i / total of one update, differentiable any number of times.

    `network`: the bare module in training mode; engines leave its weights, buffers and .grad alone. `weights`: w before
    the update, not on any graph. `total`: samples of all processes that L is divided by. `seed`: of dropout masks in
    the forward pass; those of the update if the samples are its whole (last) micro-batch. `autocast`: opened around
    the forward pass. `views` > 1: losses couple the rows of an image, of which there are so many: all images, then
    all first copies, and so on. `one_sided`: something that moves with w counts as a constant in the gradient that
    training follows, or ShakeDrop changes that, so that grad_w L is not the derivative of L's values. docs/meta.md
    derives what is made of it.
    """

    network: nn.Module
    weights: Weights
    samples: Samples
    losses: Losses
    total: int
    seed: int = 0
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    views: int = 1
    one_sided: bool = False


class Cotangent(NamedTuple):
    """The result of an engine: d <u, grad_w L> / d (images, target.mass, target.weight, target.rows) of a Problem.

    Shapes as theirs, float32: images [n, 3, S, S], mass [n, 2], weight [n], rows [n, 2, C]; each in units of the
    loss per unit of what it is the derivative in: normalised levels of images, shares of mass. `images` is None unless
    asked for, `rows` where the target has none. target.weight * weight is each sample's own share of <u, grad_w L>: the
    first-order change of the validation loss that this sample is answerable for.
    """

    images: Tensor | None
    mass: Tensor
    weight: Tensor
    rows: Tensor | None


def network_logits(problem: Problem, weights: Weights, images: Tensor, *, twice: bool = True) -> Tensor:
    """Logits [n, C] of normalised `images` [n, 3, S, S] at `weights`: `eager_logits` as `problem` and `twice` say."""
    return eager_logits(problem.network, weights, images, problem.seed, problem.autocast, twice=twice)


def eager_logits(
    network: nn.Module,
    weights: Weights,
    images: Tensor,
    seed: int,
    autocast: Callable[[], AbstractContextManager[object]],
    *,
    twice: bool,
) -> Tensor:
    """Logits [n, C] of normalised `images` [n, 3, S, S] at `weights`.

    Buffers, generators and weights of the `network` stay as they are. Runs eagerly what was compiled, with copies of
    the buffers, which BatchNorm moves, and the dropout masks of `seed`, under `autocast`.
    `twice`: attention by its mathematical definition and some functions written out, as torch's own have first
    derivatives only.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        seeds = not (images.is_cuda and torch.cuda.is_current_stream_capturing())  # else as it is replayed
        if seeds:
            stack.enter_context(torch.random.fork_rng([images.device] if images.is_cuda else []))
        if twice:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(WrittenOut())
        stack.enter_context(autocast())
        if seeds:
            torch.manual_seed(seed)
        logits: Tensor = functional_call(network, {**weights, **buffers}, (images,))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def detached(target: SoftTarget) -> SoftTarget:
    """The same `target` off autograd's graph."""
    return SoftTarget(*(None if field is None else field.detach() for field in target))  # type: ignore[arg-type]


def pull_back(
    samples: Samples,
    cotangent: Cotangent,
    parameters: Mapping[str, Tensor],
    over_processes: Callable[[Tensor], Tensor] = lambda local: local,
) -> dict[str, Tensor]:
    """The hypergradient in `parameters`, by name, from the cotangent of what they act through; zeros where they do not.

    Each has the shape of its parameter (a scalar's is []); `samples` are those that the engine was asked about.

    Operations drawn at random count by their score function, share_i * grad log p_i, with the mean share of the other
    samples as baseline (REINFORCE, Williams 1992), which keeps it unbiased as long as samples do not act on one
    another. `over_processes` sums a tensor over all processes: the baseline is that of all samples. The result is this
    process's term; the caller adds them up.
    """
    pairs = [
        (samples.images, cotangent.images),
        (samples.target.mass, cotangent.mass),
        (samples.target.weight, cotangent.weight),
        (samples.target.rows, cotangent.rows),
    ]
    if samples.log_probability is not None:
        drawn = samples.log_probability.detach() < 0  # the others' operations were certain: no share of chance in them
        share = torch.where(drawn.to(cotangent.weight.device), samples.target.weight.detach() * cotangent.weight, 0)
        total, count = over_processes(torch.stack([share.sum(), drawn.sum().to(share)]))
        pairs.append((samples.log_probability, share - (total - share) / (count - 1).clamp_min(1)))
    reached = [(t, c.to(t.dtype)) for t, c in pairs if t is not None and c is not None and t.requires_grad]
    if not reached:
        return {name: torch.zeros_like(p) for name, p in parameters.items()}
    outputs, gradients = zip(*reached, strict=True)
    pulled = torch.autograd.grad(outputs, list(parameters.values()), gradients, allow_unused=True)
    by_name = zip(parameters.items(), pulled, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in by_name}

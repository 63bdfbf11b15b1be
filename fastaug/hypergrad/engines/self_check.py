"""The self-test of the engines: each differentiates a few real samples, and the first exact one is chosen.

Exact is what agrees with a float64 reference. The order of choice is that of ENGINES, cheapest first, and not that of
this run's timings: a continued run and every process of it choose alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastaug.hypergrad.engines import ENGINES
from fastaug.hypergrad.engines.difference import STEP, difference
from fastaug.hypergrad.problem import Cotangent, Problem, Samples, Weights, detached, network_logits
from fastaug.targets import SoftTarget

EXACT = 0.05  # of float32, where some ReLU gates fall otherwise; the silent errors that are known are at least 0.1
APPROXIMATE = 0.3  # of finite differences in float32
PRECISE_STEP = 1e-5  # |dw| of finite differences in float64
NOISE = 0.01  # on the images of the test, in units of the standard deviation over pixels
PIXEL_STEP = 1e-8  # |dx| of differences of gradients in float64
LABELS = ("mass", "weight", "rows")


@dataclass(frozen=True)
class Trial:
    """One engine's result: relative errors by field of the Cotangent and seconds, or why it is out of the question."""

    engine: str
    errors: dict[str, float]
    seconds: float = float("nan")
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether all errors are small enough for float32."""
        limit = APPROXIMATE if self.engine == "difference" else EXACT
        return not self.reason and all(error <= limit for error in self.errors.values())

    def __str__(self) -> str:
        if self.reason:
            return f"{self.engine:<11} cannot: {self.reason}"
        errors = "  ".join(f"{field} {error:.1e}" for field, error in self.errors.items())
        return f"{self.engine:<11} {1000 * self.seconds:7.1f} ms  {errors}{'' if self.exact else '  WRONG'}"


@dataclass(frozen=True)
class SelfTest:
    """The outcome of a self-test: the engine `chosen`, what all were compared with, and a Trial of each."""

    chosen: str
    reference: str
    trials: tuple[Trial, ...]


def self_test(
    problem: Problem,
    *,
    images: bool,
    engines: Sequence[str] = tuple(ENGINES),
    samples: int = 8,
    say: Callable[[str], object] = print,
) -> SelfTest:
    """Compares `engines` on the first `samples` of a problem, with image gradients if the run needs `images`.

    ValueError when none is exact; it names the operations in the way and the remedy.
    """
    small = replace(first(problem, samples), autocast=nullcontext)
    direction = loss_gradient(small)
    name, expected = reference(small, direction, images)
    with full_float32():
        trials = tuple(_trial(engine, small, direction, expected, images) for engine in engines)
    say(f"engines of the meta step on {len(small.samples.images)} samples, relative errors against {name}:")
    for trial in trials:
        say(f"  {trial}")
    exact = [trial.engine for trial in trials if trial.exact]
    if not exact:
        raise ValueError(_nothing_left(trials, images))
    say(f"  chosen: {exact[0]}")
    return SelfTest(exact[0], name, trials)


@contextmanager
def full_float32() -> Iterator[None]:
    """Without TensorFloat-32, whose ten bits of mantissa are the run's choice and no error of an engine."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def first(problem: Problem, count: int) -> Problem:
    """The problem of the first `count` samples, off any graph, a little noise on their images.

    In areas of one colour the maxima of a pool are tied, and its derivative jumps wherever they are pulled apart. Where
    images have several views: all views of as many images as that gives, two or more.
    """
    every = torch.arange(len(problem.samples.images)).view(problem.views, -1)
    chosen = every[:, : max(2, count // problem.views)].flatten().to(problem.samples.images.device)
    images, target = problem.samples.images[chosen].detach(), detached(problem.samples.target)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    parts = (None if part is None else part[chosen] for part in target)
    return replace(problem, samples=Samples(images + NOISE * noise.to(images), SoftTarget(*parts)))  # type: ignore[arg-type]


def loss_gradient(problem: Problem) -> Weights:
    """grad_w L: a direction of the kind that occurs."""
    weights = {name: weight.detach().requires_grad_() for name, weight in problem.weights.items()}
    with torch.enable_grad():
        logits = network_logits(problem, weights, problem.samples.images)
        loss = problem.losses(logits, problem.samples.target).sum() / problem.total
    gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, gradients, strict=True))


def in_float64(problem: Problem) -> Problem:
    """The same problem on a float64 copy of the network."""
    samples, weights = problem.samples, {name: weight.double() for name, weight in problem.weights.items()}
    parts = {name: getattr(samples.target, name) for name in LABELS}
    target = samples.target._replace(**{name: part.double() for name, part in parts.items() if part is not None})
    network = deepcopy(problem.network).double()
    return replace(problem, network=network, weights=weights, samples=Samples(samples.images.double(), target))


def reference(problem: Problem, direction: Weights, images: bool) -> tuple[str, Cotangent]:
    """What to compare with (name, cotangent): the first engine that runs, in float64 unless its passes differ there.

    It has to agree with differences of first derivatives: a function marked once_differentiable, for one, counts as
    a constant in reverse mode, and nothing is raised. ValueError if nothing is left for the images.
    """
    precise, wide, digits = in_float64(problem), {n: t.double() for n, t in direction.items()}, "float64"
    if _error(_logits(problem), _logits(precise)) > EXACT:  # generators may draw other dropout masks in float64
        precise, wide, digits = problem, direction, "float32"
    reasons = []
    for name in ("reverse", "functional", "forward"):
        try:
            cotangent = ENGINES[name](precise, wide, images=images)
        except RuntimeError as error:
            reasons.append(f"{name}: {_reason(error)}")
            continue
        if digits == "float64" and (apart := disagreement(precise, wide, cotangent)) > EXACT:
            reasons.append(
                f"{name}: {apart:.1e} apart from differences of first derivatives: a torch.autograd.Function in "
                "this network has a wrong second derivative, or none"
            )
            continue
        return f"{name} in {digits}", cotangent
    if images or problem.one_sided:
        raise ValueError(_remedy(reasons, images))
    step = PRECISE_STEP if digits == "float64" else STEP
    return f"difference in {digits}", difference(precise, wide, images=False, step=step)


def disagreement(problem: Problem, direction: Weights, cotangent: Cotangent) -> float:
    """Relative distance of `cotangent` from difference quotients that need no second derivatives, in float64.

    In labels over the weights (not of one-sided losses, whose values say nothing of their gradient), in the images
    along `cotangent.images`: with a step that hardly any ReLU gate notices.
    """
    apart = 0.0
    if not problem.one_sided:
        apart = max(_errors(cotangent, difference(problem, direction, images=False, step=PRECISE_STEP)).values())
    if cotangent.images is None:
        return apart
    size = cotangent.images.norm()
    move = PIXEL_STEP * cotangent.images / size if size else PIXEL_STEP * torch.ones_like(cotangent.images)
    slopes = []
    for side in (move, -move):
        gradient = loss_gradient(
            replace(problem, samples=problem.samples._replace(images=problem.samples.images + side))
        )
        slopes.append(torch.stack([(direction[name] * g).sum() for name, g in gradient.items()]).sum())
    quotient = (slopes[0] - slopes[1]) / (2 * PIXEL_STEP)
    return max(apart, float((quotient - size).abs() / torch.maximum(quotient.abs(), size)) if size else 0.0)


def _logits(problem: Problem) -> Tensor:
    with torch.no_grad():
        return network_logits(problem, problem.weights, problem.samples.images)


def _trial(engine: str, problem: Problem, direction: Weights, expected: Cotangent, images: bool) -> Trial:
    """Runs an engine twice: the second time is timed."""
    if engine == "difference" and images:
        return Trial(engine, {}, reason="wrong for image gradients in networks with kinks, so only without them")
    if engine == "difference" and problem.one_sided:
        return Trial(engine, {}, reason="wrong for losses that take a prediction for a constant")
    try:
        ENGINES[engine](problem, direction, images=images)
        start = time.perf_counter()
        cotangent = ENGINES[engine](problem, direction, images=images)
        float(cotangent.weight.sum())  # waits for the device
        seconds = time.perf_counter() - start
    except RuntimeError as error:
        return Trial(engine, {}, reason=_reason(error))
    return Trial(engine, _errors(cotangent, expected), seconds)


def _errors(cotangent: Cotangent, expected: Cotangent) -> dict[str, float]:
    """Relative error of each field that both have."""
    return {
        field: _error(getattr(cotangent, field), getattr(expected, field))
        for field in Cotangent._fields
        if getattr(cotangent, field) is not None and getattr(expected, field) is not None
    }


def _error(computed: Tensor, expected: Tensor) -> float:
    size, off = float(expected.double().norm()), float((computed.double() - expected.double()).norm())
    return off / size if size else off


def _reason(error: RuntimeError) -> str:
    """The first line, which names the operation. Lack of memory is no property of an engine."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    return str(error).strip().splitlines()[0]


def _nothing_left(trials: tuple[Trial, ...], images: bool) -> str:
    return _remedy([str(trial) for trial in trials], images)


def _remedy(reasons: list[str], images: bool) -> str:
    remedy = "replace the operation that is named"
    if images:
        remedy += ", or learn weights, labels and probabilities only: they need no image gradients"
    return "\n  ".join(["no engine can differentiate this network:", *reasons, f"remedy: {remedy}"])

"""A computation of the meta step recorded once as a CUDA graph: its thousands of launches become one.

A ResNet-50's forward engine is 4,700 launches; the device waits for them more than half of the time.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.problem import Cotangent, Problem, Samples, Weights
from fastaug.targets import SoftTarget

Tensors = Mapping[str, Tensor]
Compute = Callable[[Tensors], Sequence[Tensor | None]]


SAME = 0.02  # relative distance of what a replay and computing give; kernels that add in any order differ, in TF32 too


class RecordingError(RuntimeError):
    """A computation that cannot be recorded, or whose replay gives something else."""


class Recording:
    """One computation on a GPU: the first call computes, the second records, and all from there on replay.

    Only calls like the first are recorded, others (a short last batch) computed. What was recorded is compared with
    computing once, and keeps the memory of its activations.
    """

    def __init__(self) -> None:
        self._like: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensors = {}
        self._outputs: Sequence[Tensor | None] = ()

    def __call__(self, compute: Compute, inputs: Tensors, *, seed: int, also: Hashable = ()) -> list[Tensor | None]:
        """The results of `compute(inputs)`, tensors of the caller's own.

        `compute` makes at most one forward pass, with the dropout masks of `seed`. What else it depends on is in `also`
        or never changes. RecordingError for what cannot be recorded, as what waits for the device.
        """
        like = (also, *((name, t.shape, t.stride(), t.dtype) for name, t in inputs.items()))
        first, self._like = self._like is None, self._like or like
        if first or like != self._like:
            return list(compute(inputs))
        if self._graph is None:
            self._record(compute, inputs, seed)
        torch._foreach_copy_(list(self._inputs.values()), [t.detach() for t in inputs.values()])
        return self._replayed(seed)

    def _replayed(self, seed: int) -> list[Tensor | None]:
        assert self._graph is not None
        with torch.random.fork_rng([next(iter(self._inputs.values())).device]):
            torch.manual_seed(seed)
            self._graph.replay()
        return [None if t is None else t.clone() for t in self._outputs]

    def _record(self, compute: Compute, inputs: Tensors, seed: int) -> None:
        self._inputs = {name: t.detach().clone() for name, t in inputs.items()}
        beside = torch.cuda.Stream()  # memory and algorithms are chosen there, which a recording forbids
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            computed = compute(self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that decode images allocate memory meanwhile; they are not part of it.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = compute(self._inputs)
        except RuntimeError as error:
            raise RecordingError(f"the computation cannot be recorded ({error})") from error
        self._graph = graph
        check_same(self._replayed(seed), computed)


def check_same(replayed: Sequence[Tensor | None], computed: Sequence[Tensor | None]) -> None:
    """RecordingError where one of the tensors is not near the one that was computed. Host sync."""
    for got, want in zip(replayed, computed, strict=True):
        if got is None or want is None:
            continue
        distance, size = (got - want).norm(), want.norm()
        if bool(size.isfinite() & ~(distance <= SAME * size)):
            raise RecordingError(f"a replay is {float(distance / size):.3g} away from what is computed")


def recorded_forward(recording: Recording, problem: Problem, direction: Weights) -> Cotangent:
    """The cotangent by the engine `forward`, replayed by a `recording` of its own."""
    target, images = problem.samples.target, problem.samples.images.requires_grad
    fields = {name: field for name, field in target._asdict().items() if field is not None}
    inputs = {"images": problem.samples.images, **fields}
    inputs |= {f"weight of {name}": weight for name, weight in problem.weights.items()}
    inputs |= {f"direction of {name}": u for name, u in direction.items()}

    def compute(tensors: Tensors) -> Cotangent:
        weights = {name: tensors[f"weight of {name}"] for name in problem.weights}
        samples = Samples(tensors["images"], SoftTarget(**{name: tensors[name] for name in fields}))
        along = {name: tensors[f"direction of {name}"] for name in direction}
        return forward(replace(problem, weights=weights, samples=samples), along, images=images)

    return Cotangent(*recording(compute, inputs, seed=problem.seed, also=(images, problem.total)))  # type: ignore[arg-type]

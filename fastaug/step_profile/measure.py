"""Measures where the time of a training step goes: the real step of a recipe, with a clock on each of its parts.

No stage waits for the device: on a GPU its time is that between two events in the stream, read after the last step,
on a CPU that of the clock. Three passes tell whether loading hides behind computing: the
loader with the network, the loader alone, and the network alone on a batch that is there already.
"""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from fastaug.batch import Batch
from fastaug.meta.step import MetaStep
from fastaug.training.build import Trainer
from fastaug.training.loop import train_step

STAGES = ("load", "augment", "forward", "backward", "optimizer", "meta", "rest")  # of the step, one after the other
WARM_UP, TRACED = 5, 5  # steps that do not count; steps in a trace
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a Chrome trace


class Watch:
    """A stopwatch for named spans of the steps of one pass, in seconds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: list[list[tuple[str, Any, Any]]] = []  # of every step
        self._inside = False

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def during(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time counted as `stage`; inside of another stage it belongs to that one."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, start = True, self._now()
            try:
                with record_function(stage):
                    return call(*args, **kwargs)
            finally:
                self._inside = False
                self._spans[-1].append((stage, start, self._now()))

        return timed

    def step(self, call: Callable[[], Any]) -> None:
        """Runs one step; what no stage claims of it is "rest"."""
        self._spans.append([])
        start = self._now()
        with record_function("step"):
            call()
        self._spans[-1].append(("step", start, self._now()))

    def seconds(self) -> list[dict[str, float]]:
        """For every step its stages, "rest" and the whole "step"; the only wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found = []
        for spans in self._spans:
            step: dict[str, float] = {}
            for stage, start, end in spans:
                length = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
                step[stage] = step.get(stage, 0.0) + length
            step["rest"] = 2 * step["step"] - sum(step.values())
            found.append(step)
        return found


class Staged:
    """A proxy of a member of the trainer; calls of some of its methods are timed, everything else is passed through.

    `counts`: whether they are timed in this step.
    """

    def __init__(
        self, part: Any, watch: Watch, stages: dict[str, str], counts: Callable[[], bool] = lambda: True
    ) -> None:
        self._part, self._counts = part, counts
        self._timed = {name: watch.during(stage, getattr(part, name)) for name, stage in stages.items()}

    def __getattr__(self, name: str) -> Any:
        return self._timed[name] if name in self._timed and self._counts() else getattr(self._part, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed["__call__"](*args, **kwargs)


# What is timed of each part; a new stage is a line here and a name in STAGES.
PARTS = {
    "augment": {"training": "augment"},
    "model": {"__call__": "forward"},
    "objective": {"__call__": "forward"},
    "accelerator": {"backward": "backward", "clip_grad_norm_": "optimizer"},
    "optimizer": {"step": "optimizer", "zero_grad": "optimizer"},
    "ema": {"update": "optimizer"},
    "meta": {"before_forward": "meta", "before_update": "meta", "after_update": "meta"},
}


def watched(trainer: Trainer, watch: Watch) -> Trainer:
    """The same trainer with calls of its members timed."""
    parts = {name: getattr(trainer, name) for name in PARTS}
    timed: dict[str, Any] = {name: Staged(part, watch, PARTS[name]) for name, part in parts.items() if part is not None}
    timed["meta"] = Staged(trainer.meta, watch, PARTS["meta"], lambda: trainer.meta.acts(trainer.progress.step))
    return replace(trainer, **timed)


class Waits:
    """A loader's batches, the time until each counted as "load"."""

    def __init__(self, batches: Iterator[Batch], watch: Watch) -> None:
        self._next = watch.during("load", batches.__next__)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch: Batch = self._next()
        return batch


@dataclass(frozen=True)
class Profile:
    """A profile of the training step, in seconds. `steps`: every step's stages, their "rest" and the whole "step"."""

    steps: list[dict[str, float]]
    loader_alone: float  # per step
    compute_alone: float  # per step
    images: int  # per step
    idle: float  # share of the step: of the device's time on a GPU, of the time of the usable cores on a CPU
    device: str
    cores: int
    busy_cores: float
    copy: float | None = None  # per step, from host to device, beside the other stages; None where nothing is copied
    not_measured: dict[str, str] = field(default_factory=dict)  # stage -> why

    def mean(self, stage: str) -> float:
        """Seconds of a stage per step."""
        return sum(step.get(stage, 0.0) for step in self.steps) / len(self.steps)

    def share(self, stage: str) -> float:
        """The share of the step that a stage takes."""
        return self.mean(stage) / self.mean("step")

    def stages(self) -> dict[str, float]:
        """Mean seconds of the stages that ran."""
        return {name: self.mean(name) for name in STAGES if any(name in step for step in self.steps)}

    @property
    def bound(self) -> float:
        """Shortest possible step: where loader and network share the cores one after the other, else side by side."""
        if self.device == "cpu":
            return self.loader_alone + self.compute_alone
        return max(self.loader_alone, self.compute_alone)


def profile(trainer: Trainer, steps: int, trace: Path | None = None) -> Profile:
    """Runs `steps` training steps in each pass; `trace` is written as a Chrome trace of some more."""
    device = trainer.accelerator.device
    steps = start_of_meta(trainer, steps)
    found, busy = together(trainer, steps)
    loader, batch = loader_alone(trainer, steps)
    compute = compute_alone(trainer, batch, steps)
    step = sum(one["step"] for one in found) / len(found)
    cores = len(os.sched_getaffinity(0))
    missing = {} if isinstance(trainer.meta, MetaStep) else {"meta": "the recipe has no meta step"}
    idle, copy = max(0.0, 1 - busy / cores), None
    if trace is not None or device.type == "cuda":
        work = device_work(traced(trainer, trace))
        if device.type == "cuda":
            idle, copy = max(0.0, 1 - work["busy"] / step), work["copy"]
    if copy is None:
        missing["copy"] = "images are decoded where they are used"
    return Profile(found, loader, compute, trainer.order.batch_size, idle, device.type, cores, busy, copy, missing)


def start_of_meta(trainer: Trainer, steps: int) -> int:
    """Goes to the first update with a meta step; `steps` made whole cadences, for a fair mean."""
    if not isinstance(trainer.meta, MetaStep):
        return steps
    every = trainer.recipe.meta.every
    trainer.progress.step = max(trainer.progress.step, trainer.meta.first_step)
    return -(-steps // every) * every


def batches_for(trainer: Trainer, steps: int) -> Iterator[Batch]:
    """The batches of the next `steps` updates."""
    first = trainer.progress.step
    return trainer.loader.batches(trainer.order.requests(first, first + steps))


def together(trainer: Trainer, steps: int) -> tuple[list[dict[str, float]], float]:
    """The stages of every step, loader and network at work; cores that this process kept busy."""
    watch = Watch(trainer.accelerator.device)
    clocked, batches = watched(trainer, watch), Waits(batches_for(trainer, WARM_UP + steps), watch)
    wall = cpu = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            watch.seconds()
            wall, cpu = time.perf_counter(), time.process_time()
        watch.step(lambda: train_step(clocked, batches))
    found = watch.seconds()[WARM_UP:]
    return found, (time.process_time() - cpu) / (time.perf_counter() - wall)


def loader_alone(trainer: Trainer, steps: int) -> tuple[float, Batch]:
    """Seconds per update when nothing but the loader works, and one batch."""
    batches = batches_for(trainer, WARM_UP + steps)
    for _ in range(WARM_UP * trainer.order.accumulate):  # also takes what was decoded in advance
        batch = next(batches)
    seconds = timed_loop(trainer, lambda: next(batches), steps * trainer.order.accumulate)
    return seconds / steps, batch


def compute_alone(trainer: Trainer, batch: Batch, steps: int) -> float:
    """Seconds per update on a batch that is there already."""
    again = shown_again(trainer, batch, WARM_UP + steps)
    timed_loop(trainer, lambda: train_step(trainer, again), WARM_UP)
    return timed_loop(trainer, lambda: train_step(trainer, again), steps) / steps


def shown_again(trainer: Trainer, batch: Batch, steps: int) -> Iterator[Batch]:
    """The images of `batch` under the ids of the next `steps` updates, which the meta step looks for."""
    first = trainer.progress.step
    for request in trainer.order.requests(first, first + steps):
        n = min(len(request.ids), len(batch.ids))
        ids, draws = (torch.from_numpy(numbers[:n].copy()) for numbers in (request.ids, request.draws()))
        yield Batch(batch.images[:n], batch.labels[:n], ids, draws)


def timed_loop(trainer: Trainer, call: Callable[[], Any], times: int) -> float:
    """Seconds of `times` calls, the device's work included."""
    settle(trainer.accelerator.device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    settle(trainer.accelerator.device)
    return time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def traced(trainer: Trainer, file: Path | None) -> dict[str, Any]:
    """The Chrome trace of TRACED steps, stages as named spans; also written to `file`."""
    device = trainer.accelerator.device
    watch = Watch(device)
    clocked, batches = watched(trainer, watch), Waits(batches_for(trainer, WARM_UP + TRACED), watch)
    for _ in range(WARM_UP):
        watch.step(lambda: train_step(clocked, batches))
    settle(device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
        for _ in range(TRACED):
            watch.step(lambda: train_step(clocked, batches))
        settle(device)
    with tempfile.TemporaryDirectory() as folder:
        path = file or Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text())
    return trace


def device_work(trace: dict[str, Any]) -> dict[str, float]:
    """Seconds per traced step: "busy", in which the device did anything, and "copy", from the host to it."""
    events = [e for e in trace["traceEvents"] if e.get("cat") in DEVICE_WORK]
    spans = sorted((float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events)  # microseconds
    busy, end = 0.0, -math.inf
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    copy = sum(float(e["dur"]) for e in events if "HtoD" in e["name"])
    return {"busy": busy / 1e6 / TRACED, "copy": copy / 1e6 / TRACED}

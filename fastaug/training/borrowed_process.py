"""The process of somebody's script or notebook: what a run changes in it is put back, and one run has it at a time."""

import atexit
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.errors import FastaugError

_STATES = (AcceleratorState, GradientState, PartialState)  # what Accelerate keeps for the whole process
_taken = threading.Lock()  # as those are, the torch settings and generators below are the process's, not a thread's


@contextmanager
def borrowed_process() -> Iterator[None]:
    """Inside, a run may have the process to itself; behind it everything is as before, whatever happened.

    Put back are Accelerate's state, torch's generators and precision settings, environment variables and warning
    filters. Several processes stay joined, since a launcher's meeting place is good for one group: the next run finds
    them so, and they part when the process ends. FastaugError when another run of this process is inside.
    """
    if not _taken.acquire(blocking=False):
        raise FastaugError(
            "another training or evaluation runs in this process, and both would change the settings of torch; "
            "wait for it, or start a process for each"
        )
    joined = _joined()
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
            for keeper in (_accelerate, _precision, _environment):
                stack.enter_context(keeper())
            yield
    finally:
        if _joined() and not joined:
            atexit.register(_part)
        _taken.release()


def _joined() -> bool:
    """Whether this process is in a group of processes."""
    return dist.is_available() and dist.is_initialized()


def _part() -> None:
    """Leaves the group: one of its threads that outlives the interpreter would abort the process."""
    if _joined():
        dist.destroy_process_group()


@contextmanager
def _accelerate() -> Iterator[None]:
    """An Accelerator inside is a new one, with the precision of its own recipe; those of before are as they were."""
    before = [dict(state._shared_state) for state in _STATES]
    for state in _STATES:
        state._shared_state.clear()
    try:
        yield
    finally:
        for state, values in zip(_STATES, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)


@contextmanager
def _precision() -> Iterator[None]:
    """What `choose_kernels` and `time_kernels` set."""
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision())
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before[:2]
        torch.set_float32_matmul_precision(before[2])


@contextmanager
def _environment() -> Iterator[None]:
    """Accelerate writes its settings into the environment of the process, where the next run would find them."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})

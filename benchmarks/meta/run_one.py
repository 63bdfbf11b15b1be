"""One method in a process of its own, next to plain steps: run_one.py METHOD PART SETTING REFERENCE THREADS PAIRS.

Prints a JSON line. REFERENCE is a file with the hypergradient in all parameters, weights first, by how many updates a
method takes. The peak memory is that of two steps, over what was resident before the method was built; then it
takes turns with plain steps.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # started by its path, maybe in another environment

import importlib
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.meta.peers import PEERS, UPDATES
from benchmarks.meta.task import Setting, Step, Task, agreement, new_task, plain
from benchmarks.peers.process_tree import memory_mib


def builder(name: str) -> Callable[[Task], Step]:
    """Of that method; what it needs is imported."""
    if name in PEERS:
        for module in PEERS[name].modules:
            importlib.import_module(module)
        return PEERS[name].build
    from benchmarks.meta.methods import METHODS

    return METHODS[name]


def timed(step: Step) -> dict[str, float]:
    """Seconds of one step, on the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def paired(step: Step, other: Step, pairs: int) -> dict[str, float]:
    """Median seconds of both, and the median ratio within a pair; the order alternates."""
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(pairs):
        if number % 2 == 0:
            found.append((timed(step), timed(other)))
        else:
            after = timed(other)
            found.append((timed(step), after))
    figures = {}
    for clock in ("wall", "cpu"):
        figures[f"seconds_{clock}"] = statistics.median(one[clock] for one, _ in found)
        figures[f"plain_seconds_{clock}"] = statistics.median(two[clock] for _, two in found)
        figures[f"t0_{clock}"] = statistics.median(one[clock] / two[clock] for one, two in found)
    return figures


def run(name: str, part: str, setting: Setting, reference: str, pairs: int) -> dict[str, Any]:
    """All figures of one method."""
    build, task = builder(name), new_task(setting, part)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again, without that of the imports
    before = memory_mib("VmRSS")
    step = build(task)
    first = step()
    step()
    figures: dict[str, Any] = {"memory_mib": memory_mib("VmHWM") - before, "torch": torch.__version__}
    if name in PEERS:
        figures["version"] = importlib.metadata.version(PEERS[name].distribution)
    if len(first):
        truth = torch.load(reference, weights_only=True)[UPDATES.get(name, 1)][: len(first)]
        figures["agreement"] = agreement(first, truth, task)
    other = plain(task)
    other()
    return figures | paired(step, other, pairs)


def main(arguments: list[str]) -> None:
    # Libraries print what they like: standard output becomes the error stream, the answer gets a channel of its own.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, part, setting, reference, threads, pairs = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(run(name, part, Setting.from_json(setting), reference, int(pairs))), file=channel, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""starts.jsonl: what a run was started on, a line for every start that came to train.

A line has the update from which that start trained, its number of processes, its device, precision and threads, and
the versions. Micro-batches, and with them the partners of mixing, depend on the number of processes, and the bits of
what a CPU computes on its instructions: nothing else in a run folder says them of a run that has not ended.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from fastaug.provenance import commit, versions

FILE = "starts.jsonl"
EVENT = ("step", "time")  # keys of a line that say when it was, not on what


def this_start(accelerator: Accelerator, step: int) -> dict[str, Any]:
    """The line of a start that trains from update `step` (updates done) on; `time` in seconds of the epoch."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    return {
        "step": step,
        "time": int(time.time()),
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": versions(),
    }


def read_starts(run: Path) -> list[dict[str, Any]]:
    """The lines of the run folder `run`, oldest first; none of a run by a version that wrote none, or torn ones."""
    try:
        lines = (run / FILE).read_text().splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            found.append(values)
    return found


def start_of(starts: Sequence[dict[str, Any]], step: int) -> dict[str, Any] | None:
    """That of the `starts` of a run, oldest first, which trained update `step` (from 0); None where none did."""
    before = [start for start in starts if start["step"] <= step]
    return before[-1] if before else None

"""starts.jsonl: what a run was started on, a line for every start that came to train.

A line has the update from which that start trained, its number of processes, its device, precision and threads, and
the versions. Micro-batches, and with them the partners of mixing, depend on the number of processes, and the bits of
what a CPU computes on its instructions: nothing else in a run folder says them of a run that has not ended.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from fastaug.distributed import on_every_process
from fastaug.errors import RecipeError
from fastaug.provenance import commit, versions
from fastaug.recipe.schema import Recipe

# Where a machine's copy of the images lies, and how fast it reads them; what is found there is compared by its content.
OF_A_MACHINE = {"data.root", "data.table", "data.class_map", "data.splits", "data.labels", "data.threads"}
OF_A_MACHINE |= {"data.prefetch"}
FILE = "starts.jsonl"
EVENT = ("step", "time")  # keys of a line that say when it was, not on what


def check_same_start(recipe: Recipe, accelerator: Accelerator, hosts: Sequence[str]) -> None:
    """RecipeError unless all processes have the same recipe, versions and commit; all raise it, and name who differs.

    `hosts`: of the processes, by rank. A process with other keys would train another run, or wait for ever.
    """
    if accelerator.num_processes == 1:
        return
    mine = _compared(recipe)
    main: list[Any] = [mine]
    broadcast_object_list(main)
    changed = [key for key in sorted(mine.keys() | main[0].keys()) if mine.get(key) != main[0].get(key)]
    if None in (mine["commit"], main[0]["commit"]):  # no checkout, or no git there to tell
        changed = [key for key in changed if key != "commit"]
    told = "; ".join(f"{key} is {mine.get(key)!r} there and {main[0].get(key)!r} in process 0" for key in changed)
    found = on_every_process(accelerator, told)
    if problems := [f"process {rank} on {hosts[rank]}: {text}" for rank, text in enumerate(found) if text]:
        remedy = "start every process with the same recipe, versions and commit"
        raise RecipeError([f"{problem}; {remedy}" for problem in problems])


def _compared(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that no process may have otherwise, the versions and the commit."""
    keys = {f"{section}.{key}": value for section, keys in asdict(recipe).items() for key, value in keys.items()}
    return {key: value for key, value in keys.items() if key not in OF_A_MACHINE} | versions() | {"commit": commit()}


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

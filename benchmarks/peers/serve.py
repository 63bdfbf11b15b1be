"""One loader or training loop in a process of its own: it measures itself in rounds, as it is told to.

    serve.py loader|trainer NAME JOB            one JSON line for the first batch, then one for every line read
    serve.py --check REFERENCE loader NAME JOB  compares one pass over the images with the right ones
    serve.py --write FORM FOLDER FILE           FFCV's file of a folder of images

A line read is {"mode", "seconds", "hold"}: batches for so many seconds, after each of which the reader sleeps `hold`
seconds, as a host does while an accelerator works. Only FFCV's libraries are needed besides those of the peer.
"""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # started by its path, maybe in another environment

import importlib.metadata
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from benchmarks.peers.catalog import LOADERS, TRAINERS, Peer
from benchmarks.peers.job import Job, Steps, Stream
from benchmarks.peers.process_tree import busy_seconds, cpu_seconds

LEAD, LEAD_STEPS = 6, 2  # untimed batches of a round: more than a loader has ready; training keeps them ready


def consume(stream: Stream) -> int:
    """Takes one batch and reads some of it."""
    images, labels, _ = next(stream)
    int(images[0].sum()), int(labels[0])
    return len(images)


def timed_round(step: Callable[[], int], lead: int, seconds: float, hold: float) -> dict[str, float]:
    """Figures of one round; the clock starts `lead` batches later, when the loader is as busy as it will be."""
    for _ in range(lead):
        step()
    own = psutil.Process()
    images = batches = 0
    waited = 0.0
    busy, cpu, start = busy_seconds(), cpu_seconds(own), time.perf_counter()
    end = start
    while end - start < seconds:
        before = end
        images += step()
        batches += 1
        waited += time.perf_counter() - before
        if hold:
            time.sleep(hold)
        end = time.perf_counter()
    wall = end - start
    cpu, busy = cpu_seconds(own) - cpu, busy_seconds() - busy
    figures = {"images": images, "batches": batches, "wall": wall, "cpu": cpu, "idle_share": waited / wall}
    figures |= {"images_per_second": images / wall, "images_per_core_second": images / cpu}
    return figures | {"busy_cores": cpu / wall, "foreign_cores": max(busy - cpu, 0) / wall}


def versions(peer: Peer) -> dict[str, str]:
    """Of the distributions that are installed."""
    found = {}
    for name in peer.distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an alternative, such as DALI's wheel for the other CUDA
    return found


def opened(kind: str, peer: Peer, job: Job) -> Steps:
    """The peer's modes; a loader has one, `load`."""
    made = peer.function()(job)
    return {"load": partial(consume, made)} if kind == "loader" else made


def serve(kind: str, name: str, job: Job, say: Callable[[dict[str, Any]], None]) -> None:
    """Answers until the other side closes."""
    peer = (LOADERS if kind == "loader" else TRAINERS)[name]
    steps = opened(kind, peer, job)
    next(iter(steps.values()))()
    say({"first_batch_seconds": time.time() - psutil.Process().create_time(), "versions": versions(peer)})
    for line in sys.stdin:
        asked = json.loads(line)
        lead = LEAD if asked["mode"] == "load" else LEAD_STEPS
        say(timed_round(steps[asked["mode"]], lead, asked["seconds"], asked["hold"]))


def main(arguments: list[str]) -> None:
    # Libraries print what they like: standard output becomes the error stream, answers get a channel of their own.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=channel, flush=True)

    if arguments[0] == "--write":
        from benchmarks.peers.ffcv_beton import write

        form, folder, file = arguments[1:]
        write(Path(folder), Path(file), form)
    elif arguments[0] == "--check":
        from benchmarks.peers.gate import check

        say(check(LOADERS[arguments[3]].function()(Job.from_json(arguments[4])), Path(arguments[1])))
    else:
        serve(arguments[0], arguments[1], Job.from_json(arguments[2]), say)
    channel.flush()
    sys.stdout.flush()
    os._exit(0)  # threads and processes of the loaders are not waited for


if __name__ == "__main__":
    main(sys.argv[1:])

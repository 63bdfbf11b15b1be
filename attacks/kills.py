"""Kills a tight loop of updates, logs and saves, many times: `python -m attacks.kills FOLDER [KILLS] [SEED] [--async]`.

Each life continues from what the one before left, by the functions that training uses, and is killed by SIGKILL after a
random time or comes to its end. In the end the folder has to hold what a loop that nobody killed has written: the same
files, lines of the logs, weights and state. Exit code 1 and the difference otherwise.

With --async the lives write checkpoints as run.checkpoint_async does, and go on meanwhile; the loop that nobody kills
waits for each.
"""

import argparse
import json
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastaug.recipe.schema import Data, Recipe, Run
from fastaug.training import checkpoint, table_files
from fastaug.training.checkpoint_writer import CheckpointWriter, Snapshot
from fastaug.training.run_folder import RunFolder
from fastaug.training.trainer_state import write_snapshot

KEEP, BEST = 2, 3
ROWS = 700  # of a table, 90 of which change with every update


def start(path: Path) -> tuple[RunFolder, int, torch.Tensor, table_files.Table]:
    """The folder, the update that its newest checkpoint is at, weights and table there, as trainer_state.restore."""
    folder = RunFolder(path)
    folder.open(Recipe(run=Run(dir=str(path)), data=Data(root="x")))
    step, weights, lines = 0, torch.ones(20_000), None
    table = table_files.Table({"rows.a": torch.zeros(ROWS, 2)}, torch.zeros(ROWS, dtype=torch.bool))
    for newest in checkpoint.newest_first(folder.checkpoints)[:1]:  # a kill never leaves one that has to be passed over
        loaded = checkpoint.load(newest)
        step, weights, lines = loaded.state["step"], loaded.weights["model"]["w"], loaded.state["lines"]
        table.rows["rows.a"].copy_(loaded.state["meta"]["learned"]["rows.a"])
        table.changed[loaded.state["changed_rows"]["rows"]] = True
        checkpoint.settle(newest, KEEP, BEST)
    assert folder.cut_after(step, lines) == []
    return folder, step, weights, table


def live(path: Path, last: int, *, asynchronous: bool) -> None:
    """Trains to update `last`, logs it, saves each update, and ends with a result."""
    table_files.WHOLE = 0  # a table of this size would be written whole
    folder, step, weights, table = start(path)
    with CheckpointWriter(asynchronous=asynchronous) as writer:
        while step < last:
            step += 1
            weights.mul_(0.999).add_(step)  # in place, as an optimizer does
            folder.append("ids-0.jsonl", {"step": step, "ids": [step, step + 1]})
            folder.append("metrics.jsonl", {"event": "train", "step": step, "loss": weights[0].item()})
            met = (torch.arange(90) + 100 * step) % ROWS
            table.rows["rows.a"][met] += step
            table.changed[met] = True
            state = {"step": step, "lines": folder.lines(), "meta": {"learned": {}}}
            snapshot = Snapshot(step, BEST, {"model": {"w": weights}}, state, {"rows": table}, {}, {})
            writer.save(snapshot, partial(write_snapshot, folder, KEEP, shares=None))
        writer.finish()
    folder.append("skipped.jsonl", {"step": step, "id": 3})
    folder.append("metrics.jsonl", {"event": "test", "step": step, "top1": weights[1].item()})
    folder.write_json("result.json", {"top1": weights[1].item()})
    folder.write_status(0, "done", step)
    folder.close()


def one_life(path: Path, last: int, seconds: float, *, asynchronous: bool) -> bool:
    """Lives in a process of its own and is killed after `seconds`; whether it was still alive then."""
    process = os.fork()
    if not process:
        try:
            live(path, last, asynchronous=asynchronous)
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a life could not continue from what the one before had left")
    return os.WIFSIGNALED(status)


def content(path: Path) -> dict[str, Any]:
    """Everything that a run folder holds, by name."""
    found: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_dir() or file.name in ("recipe.yaml", "manifest.json"):  # the folder's own path, hashes
            found[name] = "there"
        else:
            found[name] = torch.load(file, weights_only=True) if file.suffix == ".pt" else file.read_bytes()
    return found


def compare(killed: Path, whole: Path, last: int) -> None:
    """Lets both folders come to their end at update `last`, twice, without a kill, and compares them."""
    for path in (killed, killed, whole):
        live(path, last, asynchronous=False)
    found, expected = content(killed), content(whole)
    different = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if different:
        raise SystemExit(f"after a kill and the end at update {last} these differ: {', '.join(different)}")


def main(folder: Path, kills: int, seed: int, *, asynchronous: bool) -> None:
    """Kills life after life; after one in three, and in the end, compares with the folder that no kill fell into."""
    torch.set_num_threads(1)
    killed, whole, draw = folder / "killed", folder / "whole", random.Random(seed)
    for path in (killed, whole):
        shutil.rmtree(path, ignore_errors=True)
    begun = time.perf_counter()
    live(whole, 10, asynchronous=False)
    update = (time.perf_counter() - begun) / 10  # seconds
    begun = time.perf_counter()
    live(whole, 10, asynchronous=False)  # reads recipe and checkpoint, as every life does before its first update
    reading = time.perf_counter() - begun
    shutil.rmtree(whole)
    done = lives = leftovers = reached = 0
    while done < kills or (not leftovers and done < 10 * kills):  # some have to fall into a save
        lives += 1
        done += one_life(
            killed,
            reached + draw.choice((1, 2, 3, 1000)),
            draw.uniform(*draw.choice(((0, reading), (reading, 2 * reading + 16 * update)))),
            asynchronous=asynchronous,
        )
        steps = checkpoint.steps_of(killed / "checkpoints")
        leftovers += bool(list(killed.rglob("*.tmp")))
        if max(steps, default=0) < reached:
            raise SystemExit(f"the checkpoint of update {reached} is gone")
        reached = max(steps, default=0)
        if reached and draw.random() < 1 / 3:
            compare(killed, whole, reached)
    if reached:
        compare(killed, whole, reached)
    if not leftovers:
        raise SystemExit("no kill fell into a save: this tested nothing")
    print(json.dumps({"lives": lives, "updates": reached, "half_written": leftovers}))
    print(f"{done} kills: {done} continued, same files, lines, weights and state as without")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kills", type=int, nargs="?", default=500)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--async", dest="asynchronous", action="store_true", help="as run.checkpoint_async does")
    main(**vars(parser.parse_args()))

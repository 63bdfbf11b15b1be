"""Trains for long while faults come one after the other: `python -m attacks.soak FOLDER [EPOCHS] [ENDS] [SEED]`.

Two runs of one recipe with learned parts, over sound files and one of every odd kind: one that is left alone, and one
that faults meet. In its first half they end its process (ENDS), and the next one continues; in its second half they do
not (PASSES), and one process comes to the end. Then both runs must be the same, bit by bit, and the process of each
that came to the end must have kept its memory, open files, threads and children (watched.py). Exit code 1 otherwise.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from attacks.odd_files import write_set
from attacks.run_folders import FILE, content
from attacks.watched import BOUNDS, Process, Sample, grown, held, slopes
from fastaug.commands.same_run import TIMES, difference, lines_difference, names
from fastaug.training.checkpoint import newest_first

GOOD = 800  # sound files, beside one of each odd kind
EPOCH = 40  # updates of an epoch, or a few more
LOG = 10  # updates between log lines
EVERY = 25  # updates between checkpoints
LONG = 500  # epochs: 20,000 updates and more
RECIPE = """
run: {{log_every: {log}, log_ids: true, log_losses: true, checkpoint_every: {every}}}
data: {{root: {root}, img_size: 16, crop: rrc, threads: 1, meta_fraction: 0.1, select_fraction: 0.1}}
model: {{name: test_resnet, ema: true, ema_decay: 0.9}}
optim: {{opt: sgd, lr: 1e-3, sched: constant}}
train: {{epochs: {epochs}, batch_size: 16}}
augment: {{shift: 0.2}}
meta: {{learn: [policy, weights], probabilities: score, every: 4, fraction: 0.5, batch_size: 16}}
eval: {{batch_size: 64, every: 10}}
"""

# ---- faults that end the process, and its exit code ----


def _sent(number: signal.Signals) -> Callable[[Process], None]:
    return lambda one: os.kill(one.pid, number)


def disk_full(one: Process) -> None:
    """No file may grow beyond 4 KiB any more, as if there were no space."""
    resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (4096, 4096))


class Faults(NamedTuple):
    """How many faults end a process in the first half of `last` updates; `pause`: seconds between others after it."""

    ends: int
    last: int
    seed: int
    pause: float = 5.0


class End(NamedTuple):
    """A fault that ends a process, the exit code that it has to have, and whether its newest checkpoint is damaged."""

    inject: Callable[[Process], None]
    code: int
    damages: bool = False


ENDS = {
    "SIGTERM": End(_sent(signal.SIGTERM), 75),
    "SIGKILL, checkpoint damaged": End(_sent(signal.SIGKILL), -signal.SIGKILL, damages=True),
    "disk full": End(disk_full, 5),
    "SIGUSR1": End(_sent(signal.SIGUSR1), 75),
    "SIGKILL": End(_sent(signal.SIGKILL), -signal.SIGKILL),
    "SIGINT": End(_sent(signal.SIGINT), 75),
}


def damage(run: Path, draw: random.Random) -> None:
    """What can happen to a file happens to one of the newest checkpoint."""
    file = draw.choice(sorted(newest_first(run / "checkpoints")[0].iterdir()))
    FILE[draw.choice(sorted(FILE))](file)


# ---- faults that a process has to outlive ----


def stopped(one: Process, root: Path) -> None:
    """Nothing moves for two seconds, as when storage or machine stand still."""
    del root
    os.kill(one.pid, signal.SIGSTOP)
    one.watch(2)
    os.kill(one.pid, signal.SIGCONT)


def replaced(one: Process, root: Path) -> None:
    """Every sound training file is replaced by a copy while it may be read: another file and time, the same bytes."""
    del one
    for path in sorted(root.glob("train/*/?????.png")):
        shutil.copyfile(path, copy := path.with_name(f".{path.name}"))
        copy.replace(path)


def unread(one: Process, root: Path) -> None:
    """Nobody reads what it says until its pipe is full, and then somebody does: a slow reader."""
    del root
    one.unread = True
    one.watch(15)
    one.unread = False


PASSES = {"stopped": stopped, "files replaced": replaced, "output unread": unread}

# ---- the run that faults meet ----


def disturbed(recipe: Path, run: Path, faults: Faults) -> tuple[list[Sample], Counter[str]]:
    """Trains to the end through faults; the samples of the process that came there, and what was met.

    RuntimeError where a process ends otherwise than its fault has it.
    """
    met, draw = Counter[str](), random.Random(faults.seed)
    for number in range(faults.ends):
        name = [*ENDS][number % len(ENDS)]
        with Process(recipe, run) as one:
            one.watch(step=faults.last * (number + 1) // (2 * faults.ends))
            one.watch(draw.random())
            ENDS[name].inject(one)
            one.has_to_end(ENDS[name].code, name)
        if ENDS[name].damages:
            damage(run, draw)
        met[name] += 1
    with Process(recipe, run) as one:
        one.watch(step=one.step() + 1)  # a start is another matter
        while one.watch(faults.pause):
            name = [*PASSES][met.total() % len(PASSES)]
            PASSES[name](one, recipe.parent / "set")
            met[name] += 1
        one.has_to_end(0, "no fault")
    return one.samples, met


# ---- both runs, and what is wrong ----


def soak(folder: Path, epochs: int, ends: int, seed: int = 0, every: int = EVERY) -> dict[str, Any]:
    """Runs both; what they met, the slopes of what they held, and `problems`, empty where all is as promised.

    A run too short for slopes is a problem too. `every`: updates between checkpoints.
    """
    write_set(folder / "set", GOOD, 1, seed)
    recipe, calm, other = folder / "recipe.yaml", folder / "calm", folder / "disturbed"
    recipe.write_text(RECIPE.format(root=folder / "set", epochs=epochs, log=LOG, every=every))
    begun = time.monotonic()
    with Process(recipe, calm) as alone, ThreadPoolExecutor(1) as pool:
        ended = pool.submit(alone.has_to_end, 0, "no fault")
        try:
            samples, met = disturbed(recipe, other, Faults(ends, EPOCH * epochs, seed))
        except BaseException:
            alone.kill()  # the pool would wait for it
            raise
        ended.result()
    problems = differences(calm, other)
    taken = {"calm": measured(alone.samples), "disturbed": measured(samples)}
    return {
        "updates": alone.step(),
        "seconds": round(time.monotonic() - begun),
        "met": dict(met),
        "measured": taken,
        "problems": problems + [f"{run}: {text}" for run, one in taken.items() for text in one["problems"]],
    }


def differences(calm: Path, other: Path) -> list[str]:
    """What of two runs that came to their end is not the same: logs, ids, losses, weights, skipped images, files."""
    moved = _moved(calm, other)
    compared = {name: difference(name, calm, other, frozenset(TIMES)) for name in names(calm) | names(other)}
    compared["metrics.jsonl"] = lines_difference(_told(calm, moved), _told(other, moved), frozenset(TIMES))
    compared["skipped.jsonl"] = lines_difference(_skipped(calm), _skipped(other), frozenset())
    there = [content(run) - {"errors.log"} for run in (calm, other)]  # of the full disk
    found = [f"{name}: {what}" for name, what in sorted(compared.items()) if what]
    return found + [f"{name}: in one alone" for name in sorted(there[0] ^ there[1])]


def measured(samples: list[Sample]) -> dict[str, Any]:
    """What a process held, in the middle, its slopes, and what is wrong with them: that there are none, too."""
    try:
        middle = {name: median(held(samples)[name]) for name in BOUNDS}
        return {"held": middle, "slopes": slopes(samples), "problems": grown(samples)}
    except ValueError as error:
        return {"problems": [str(error)]}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _told(run: Path, moved: set[int]) -> list[str]:
    """metrics.jsonl by event and update, without what is learned at the updates in `moved`."""
    told = [line for line in _lines(run / "metrics.jsonl") if line["event"] != "learned" or line["step"] not in moved]
    return [json.dumps(line) for line in sorted(told, key=lambda line: (line["event"], line["step"]))]


def _moved(calm: Path, other: Path) -> set[int]:
    """The updates at which one run alone tells what is learned, for the other was stopped just before."""
    stops = [line["step"] for line in _lines(other / "starts.jsonl")]
    one, two = (
        {line["step"] for line in _lines(run / "metrics.jsonl") if line["event"] == "learned"} for run in (calm, other)
    )
    return {step for step in one ^ two if any(0 <= step - stop < LOG for stop in stops)}


def _skipped(run: Path) -> list[str]:
    """Images and reasons, in any order: when they are told depends on when the run was stopped."""
    return sorted(f"{line['path']}: {line['reason']}" for line in _lines(run / "skipped.jsonl"))


def main(words: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs are kept")
    parser.add_argument("epochs", type=int, nargs="?", default=LONG, help=f"of {EPOCH} updates (default {LONG})")
    parser.add_argument("ends", type=int, nargs="?", default=12, help="faults that end a process (default 12)")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="of the moments")
    args = parser.parse_args(words)
    found = soak(args.folder.resolve(), args.epochs, args.ends, args.seed)
    print(json.dumps(found, indent=2))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Kills runs of two processes that divide a network, in the middle of saves.

    python -m attacks.sharded_kills FOLDER [KILLS] [SEED]

Each life continues the run of the one before, by the worker that training uses. When a save has come to a random stage,
SIGKILL ends, a moment later, both processes, or the main one or the other alone; the one that is left has to end by
itself, with code 6: a peer is gone. Behind every kill the checkpoints that are kept have to be sound, and none gone. In
the end the run has to be that of two processes which nobody killed: log lines, ids, shares of weights and optimizer,
figures, files. Exit code 1 and what is wrong otherwise.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path

# Imported here once, for all processes that are forked: torch's parts take each of them seconds.
import torch._dynamo
import torch.distributed.checkpoint  # noqa: F401

from attacks.run_folders import content
from fastaug.commands.same_run import TIMES, difference, names
from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint
from fastaug.training.share_files import is_of_share
from fastaug.training.worker import run

KEEP = 2  # checkpoints
PATIENCE = 600  # seconds that a start or a run may take; where other work has the cores, much is slow
STAGES = ("begun", "with a share", "with both shares", "with the state", "with its manifest", "whole")  # of a save
ALONE = 120  # seconds within which a process without its peer has to end
RECIPE = """
run: {{log_every: 1, log_ids: true, checkpoint_every: 1, keep: {keep}, sample_record: false}}
data: {{loader: synthetic, synthetic_images: 16, synthetic_classes: 2, img_size: 32}}
model:
  name: vit_tiny_patch16_224
  kwargs: {{img_size: 32, patch_size: 8, depth: 4, embed_dim: 96, num_heads: 2}}
  ema: true
  ema_decay: 0.9
optim: {{opt: adamw, lr: 1e-3, weight_decay: 0.05}}
train: {{epochs: {epochs}, batch_size: 8, parallel: fsdp2}}
augment: {{shift: 0.1}}
eval: {{batch_size: 16, every: 0}}
"""


class Life:
    """Two processes of one run, forked from this one, which has imported all they need."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.log = folder.with_suffix(".log")
        self.codes: dict[int, int] = {}
        self.before = starts(folder)
        self.ranks = [self._start(recipe, folder, rank, port) for rank in range(2)]

    def _start(self, recipe: Path, folder: Path, rank: int, port: str) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            log = os.open(self.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            code = run(read_recipe(recipe, [f"run.dir={folder}"]))
        finally:
            os._exit(code)

    def ended(self) -> bool:
        """Whether both have; their exit codes, of a signal its negative number, are in `codes`, by rank."""
        for rank, process in enumerate(self.ranks):
            if rank not in self.codes and (found := os.waitpid(process, os.WNOHANG))[0]:
                self.codes[rank] = os.waitstatus_to_exitcode(found[1])
        return len(self.codes) == len(self.ranks)

    def wait(self, seconds: float) -> None:
        """Waits until both have ended; SystemExit where they do not within so many seconds."""
        until = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > until:
                self.kill((0, 1))
                raise SystemExit(f"of two processes {sorted({0, 1} - set(self.codes))} did not end in {seconds:g} s")
            time.sleep(0.01)

    def kill(self, ranks: tuple[int, ...]) -> None:
        """Kills those of `ranks` that still run."""
        self.ended()
        for rank in (rank for rank in ranks if rank not in self.codes):
            os.kill(self.ranks[rank], signal.SIGKILL)


def starts(folder: Path) -> int:
    """How often the run has come to train."""
    file = folder / "starts.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def begun(folder: Path) -> Path | None:
    """The checkpoint on its way."""
    return next(folder.glob("checkpoints/step-*.tmp"), None)


def killed(life: Life, folder: Path, saves: int, draw: random.Random) -> str | None:
    """Kills in the save behind `saves` others; what was there of it, or None where the run had come to its end."""
    seen: set[str] = set()
    until = time.monotonic() + PATIENCE
    while len(seen) <= saves:
        if life.ended():
            return None
        if time.monotonic() > until:
            raise SystemExit(f"no checkpoint was begun in {PATIENCE} s")
        if starts(folder) > life.before:  # then what a killed save left is gone
            seen |= {path.name for path in [begun(folder)] if path is not None}
        time.sleep(0.0005)
    aim = draw.randrange(len(STAGES) - 1)
    while stage(folder) < aim and not life.ended():
        time.sleep(0.0005)
    time.sleep(draw.choice((0.0, draw.uniform(0, 0.01), draw.uniform(0, 0.1))))
    victims = draw.choice(((0, 1), (0,), (1,)))
    life.kill(victims)
    life.wait(ALONE)
    if left := {rank: code for rank, code in life.codes.items() if rank not in victims and code != 6}:
        raise SystemExit(f"without its peer a process ended otherwise than with 6: {left}, by rank")
    whose = "both" if len(victims) == 2 else "main" if victims == (0,) else "other"
    return f"{whose} killed, {STAGES[stage(folder)]}"


def stage(folder: Path) -> int:
    """How far the save on its way is, or one that a kill ended, by its place in STAGES."""
    path = begun(folder)
    if path is None:
        return STAGES.index("whole")
    try:
        files = {file.name for file in path.iterdir()}
    except FileNotFoundError:  # it was renamed meanwhile
        return STAGES.index("whole")
    if "manifest.json" in files:
        return STAGES.index("with its manifest")
    return STAGES.index("with the state") if "state.pt" in files else sum(map(is_of_share, files))


def check(folder: Path, reached: int) -> int:
    """The newest checkpoint's update; SystemExit where one is not sound, or those of `reached` updates are gone."""
    steps = checkpoint.steps_of(folder / "checkpoints")
    if max(steps, default=0) < reached:
        raise SystemExit(f"the checkpoint of update {reached} is gone")
    for path in checkpoint.newest_first(folder / "checkpoints")[:KEEP]:  # an older one may be half removed
        if problem := checkpoint.verify(path):
            raise SystemExit(f"{path}: {problem}")
    return max(steps, default=0)


def compare(folder: Path, whole: Path) -> list[str]:
    """What of the run is not as in the one that nobody killed."""
    found = {name: difference(name, folder, whole, frozenset(TIMES)) for name in sorted(names(folder) | names(whole))}
    wrong = [f"{name}: {what}" for name, what in found.items() if what]
    figures = [json.loads((path / "result.json").read_text())["test"] for path in (folder, whole)]
    wrong += [] if figures[0] == figures[1] else [f"figures {figures}"]
    others = (content(folder) ^ content(whole)) - {"errors.log"}  # of processes that lost their peer
    return wrong + [f"{name}: in one alone" for name in sorted(others)]


def main(folder: Path, kills: int, seed: int) -> None:
    """Kills life after life, each some saves further; then the last one comes to the end."""
    run_dir, whole, draw = folder / "killed", folder / "whole", random.Random(seed)
    for path in (run_dir, whole):
        shutil.rmtree(path, ignore_errors=True)
    recipe, reached, met = folder / "recipe.yaml", 0, Counter[str]()
    recipe.write_text(
        RECIPE.format(epochs=2 * kills, keep=KEEP)
    )  # four updates for each kill, before which it comes to three
    while met.total() < kills:
        how = killed(Life(recipe, run_dir), run_dir, draw.choice((0, 1, 2)), draw)
        if how is None:
            raise SystemExit(f"a life ended by itself; {run_dir.with_suffix('.log')} says why")
        met[how] += 1
        print(f"{met.total()}: {how}", flush=True)
        reached = check(run_dir, reached)
    for path in (run_dir, whole):
        life = Life(recipe, path)
        life.wait(PATIENCE)
        if any(life.codes.values()):
            raise SystemExit(f"the end of {path} is {life.codes}; {path.with_suffix('.log')} says why")
    if wrong := compare(run_dir, whole):
        raise SystemExit("; ".join(wrong))
    print(json.dumps(dict(sorted(met.items())), indent=1))
    print(f"{kills} kills, {kills - sum(n for how, n in met.items() if 'whole' in how)} in the middle of a save: equal")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kills", type=int, nargs="?", default=40)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    main(**vars(parser.parse_args()))

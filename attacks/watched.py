"""A training process that is looked at from outside while it runs, and whether what it holds grows.

Memory, open files, threads and children are read from /proc. Slopes over updates are Theil's and Sen's: the median of
the slopes of all pairs, which a short peak does not move.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

import psutil
from scipy.stats import theilslopes

from fastaug.training.checkpoint import steps_of

ROOT = Path(__file__).resolve().parents[1]
PERIOD = 0.5  # seconds between looks
PATIENCE = 1800  # seconds without a checkpoint until a process counts as hung: others may have the machine
WARM = 0.5  # of a process's updates, the first: allocators and pools are still filling, 2 MiB in 500 updates
# What counts as flat, per 1,000 updates. One batch of 16 images of 16 pixels kept in each would be 12 MiB.
BOUNDS = {"memory_mib": 1.0, "files": 0.1, "threads": 0.1, "children": 0.1}


class Sample(NamedTuple):
    """What a process holds at an update: resident memory, open files, threads, children and theirs."""

    step: int
    memory_mib: float
    files: int
    threads: int
    children: int


def held(samples: list[Sample]) -> dict[str, list[float]]:
    """What was held at each update that was met, warm: its steps in 1,000, and the median of each thing held.

    ValueError for less than 8 updates.
    """
    at: dict[int, list[Sample]] = {}
    first, last = samples[0].step, samples[-1].step
    for sample in samples:
        if sample.step > first + WARM * (last - first):  # where it began, it was starting
            at.setdefault(sample.step, []).append(sample)
    if len(at) < 8:
        raise ValueError(f"{len(samples)} samples are of {len(at)} updates, too few for a slope; train for longer")
    medians = {name: [median(getattr(one, name) for one in taken) for taken in at.values()] for name in BOUNDS}
    return {"steps": [step / 1000 for step in at], **medians}


def slopes(samples: list[Sample]) -> dict[str, float]:
    """Growth per 1,000 updates of each thing held."""
    found = held(samples)
    return {name: float(theilslopes(found[name], found["steps"])[0]) for name in BOUNDS}


def grown(samples: list[Sample]) -> list[str]:
    """What grew by more than BOUNDS, in words."""
    found = slopes(samples)
    return [f"{name} grew by {found[name]:.3g} in 1,000 updates" for name in BOUNDS if found[name] > BOUNDS[name]]


class Process:
    """`train.py` on a recipe as a process of its own, in a session of its own; it ends with its context.

    Its samples are left beside the run. Its output goes through a small pipe, emptied at every look unless `unread`.
    """

    def __init__(self, recipe: Path, run: Path) -> None:
        command = [sys.executable, str(ROOT / "fastaug" / "train.py"), str(recipe), f"run.dir={run}"]
        set_up = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FASTAUG_CACHE": str(recipe.parent / "cache")}
        pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        self.run, self.samples, self.unread = run, list[Sample](), False
        self._said, self._progress, self._since = b"", -1, time.monotonic()
        self._process = subprocess.Popen(command, env=os.environ | set_up, **pipe)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, 4096)
        self.pid = self._process.pid
        self._seen = psutil.Process(self.pid)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._process.communicate()
        (self.run.parent / f"held-by-{self.pid}.json").write_text(json.dumps([one._asdict() for one in self.samples]))

    def kill(self) -> None:
        """Ends it and what it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def step(self) -> int:
        """The update of its run's newest checkpoint."""
        return max(steps_of(self.run / "checkpoints"), default=0)

    def watch(self, seconds: float = float("inf"), step: int = sys.maxsize) -> bool:
        """Looks at it until `seconds` are over, it has come to `step` or has ended; whether it still runs.

        RuntimeError when it hangs.
        """
        begun = time.monotonic()
        while (running := self._look()) and time.monotonic() - begun < seconds and self._progress < step:
            time.sleep(PERIOD)
        return running

    def _look(self) -> bool:
        if not self.unread:
            self._read()
        if (step := self.step()) != self._progress:
            self._progress, self._since = step, time.monotonic()
        if time.monotonic() - self._since > PATIENCE:
            raise RuntimeError(f"no checkpoint for {PATIENCE} s after update {step}: {self.said()}")
        try:
            with self._seen.oneshot():
                memory, files, threads = self._seen.memory_info().rss, self._seen.num_fds(), self._seen.num_threads()
            children = len(self._seen.children(recursive=True))
        except psutil.Error:  # it has just ended
            return self._process.poll() is None
        if self._process.poll() is None and memory:  # 0: it has ended, and nobody has taken note
            self.samples.append(Sample(step, memory / 2**20, files, threads, children))
        return self._process.returncode is None

    def _read(self) -> None:
        try:
            while words := os.read(self._output, 1 << 16):
                self._said = (self._said + words)[-(1 << 16) :]
        except BlockingIOError:
            return

    def said(self) -> str:
        """The end of what it said."""
        return self._said.decode(errors="replace")[-500:]

    def has_to_end(self, code: int, because: str) -> None:
        """Waits for its end; RuntimeError for another exit code, a traceback, or a process that it left running."""
        self.watch()
        self._read()
        if self._process.returncode != code or b"Traceback" in self._said:
            raise RuntimeError(f"{because}: code {self._process.returncode} instead of {code}: {self.said()}")
        if left := [one for one in psutil.process_iter() if _session_of(one.pid) == self.pid]:
            raise RuntimeError(f"{because}: {len(left)} processes were left running")


def _session_of(process: int) -> int | None:
    try:
        return os.getsid(process)
    except ProcessLookupError:
        return None

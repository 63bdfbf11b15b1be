"""The other side of `serve.py`: starts a peer, asks it for rounds, watches its memory."""

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.job import Job
from benchmarks.peers.process_tree import members, proportional_mib

SERVE = Path(__file__).with_name("serve.py")
PATIENCE = 120.0  # seconds without an answer, beyond those asked for
SAMPLE = 0.1  # seconds between two looks at the memory


class PeerError(Exception):
    """A peer that cannot be started or does not answer; the message is its own last line."""


def environment(torch_threads: int, cache: Path) -> dict[str, str]:
    """Of a peer's process: thread counts of the numeric libraries, and where fastaug keeps its index."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(torch_threads))
    return {**os.environ, **threads, "FASTAUG_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}


class Client:
    """One peer's process. Use as a context manager."""

    def __init__(self, words: list[str], python: str, env: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - until the process ends
        self._pipe = subprocess.PIPE
        command = [python, str(SERVE), *words]
        self._child = subprocess.Popen(command, stdin=self._pipe, stdout=self._pipe, stderr=self._log, env=env)
        self._process = psutil.Process(self._child.pid)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process and all it started."""
        tree = members(self._process) if self._child.poll() is None else []
        for process in reversed(tree):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._child.communicate()
        self._log.close()

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """The next line of the peer; PeerError when it ended or says nothing for `patience` seconds."""
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], patience)
        line = self._child.stdout.readline() if ready else b""
        if not line:
            raise PeerError(self._reason() if ready else f"no answer in {patience:.0f} s")
        found: dict[str, Any] = json.loads(line)
        return found

    def round(self, seconds: float, mode: str = "load", hold: float = 0.0) -> dict[str, Any]:
        """Figures of one timed round."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"mode": mode, "seconds": seconds, "hold": hold}).encode() + b"\n")
        self._child.stdin.flush()
        return self.answer(seconds + PATIENCE)

    def peak_mib(self, seconds: float) -> float:
        """Largest proportional set size of the tree during an untimed round."""
        found, done = [0.0], threading.Event()

        def look() -> None:
            while not done.wait(SAMPLE):
                found.append(proportional_mib(self._process))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            self.round(seconds)
        finally:
            done.set()
            watcher.join()
        return max(found)

    def _reason(self) -> str:
        """The last line that the peer wrote before it ended."""
        self._child.wait()
        time.sleep(SAMPLE)  # for what its own children still write
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with code {self._child.returncode}"


def started(kind: str, name: str, job: Job, python: str, env: dict[str, str]) -> tuple[Client, dict[str, Any]]:
    """A peer that has delivered its first batch, and what it said then; PeerError with the reason otherwise."""
    client = Client([kind, name, job.to_json()], python, env)
    try:
        return client, client.answer()
    except PeerError:
        client.__exit__()
        raise


def checked(name: str, job: Job, reference: Path, python: str, env: dict[str, str]) -> dict[str, Any]:
    """The gates of one loader, in a process that ends; PeerError when it cannot run."""
    with Client(["--check", str(reference), "loader", name, job.to_json()], python, env) as client:
        return client.answer()


def own_python() -> str:
    """The interpreter of peers that have none of their own."""
    return sys.executable

"""timm's own train.py, from a copy of its repository: started anew every round and read by its log lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.peers.client import PeerError
from benchmarks.peers.forms import labelled_files
from benchmarks.peers.job import EPOCH, Job
from benchmarks.peers.process_tree import members

SKIPPED = 5  # updates, while its workers start
UPDATE = re.compile(r"Train: .*Time: ([\d.]+)s")


def long_folder(files: Path, destination: Path, images: int = EPOCH) -> Path:
    """The set in `files` listed often enough for an epoch of `images`: hard links, train and val."""
    if not destination.exists():
        for split in ("train", "val"):
            found = labelled_files(files / split)
            for turn in range(-(-images // len(found)) if split == "train" else 1):
                for path, _ in found:
                    link = destination / split / path.parent.name / f"{turn:04d}-{path.name}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    os.link(path, link)
    return destination


def command(script: Path, job: Job, data: Path, output: Path) -> list[str]:
    """train.py on the CPU with the settings of recipe.yaml."""
    words = {"data-dir": data, "output": output, "train-split": "train", "val-split": "val", "model": job.model}
    words |= {"num-classes": len(list((data / "train").iterdir())), "batch-size": job.batch, "workers": job.threads}
    words |= {"opt": "momentum", "lr": 0.01, "momentum": 0.9, "weight-decay": 1e-4, "sched": "step", "epochs": 1}
    words |= {"decay-epochs": 1000, "warmup-epochs": 0}
    words |= {"hflip": 0.5, "color-jitter": 0, "train-interpolation": "bilinear", "device": "cpu", "log-interval": 1}
    options = [text for name, value in words.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(script), *options, "--img-size", str(job.side), "--channels-last"]


def rate(words: list[str], job: Job, seconds: float, env: dict[str, str]) -> float:
    """Images per second of train.py over `seconds` after its first updates; PeerError when it ends before."""
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    assert child.stdout is not None
    tree, last, times = psutil.Process(child.pid), "", []
    try:
        for line in child.stdout:
            last = line.strip() or last
            if found := UPDATE.search(line):
                times.append(float(found[1]))
            if sum(times[SKIPPED:]) >= seconds:
                return job.batch * len(times[SKIPPED:]) / sum(times[SKIPPED:])
        raise PeerError(f"train.py ended after {len(times)} updates: {last}")
    finally:
        for process in reversed(members(tree)) if child.poll() is None else []:
            process.kill()
        child.stdout.close()
        child.wait()

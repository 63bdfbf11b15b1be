"""What a meta step adds to an update: the arithmetic, and a real recipe measured."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.meta.stages import Stopwatch, Updates

ROOT = Path(__file__).resolve().parents[3]


def test_the_cost_is_spread_over_the_updates_between_two_meta_steps() -> None:
    assert Updates([1.0, 1.0, 9.0], [2.0, 3.0]).cost(10) == pytest.approx(0.15)


class Work:
    """Two methods, one inside of the other."""

    def outer(self) -> str:
        """Its own time is short."""
        self.inner()
        return "done"

    def inner(self) -> None:
        """Takes a twentieth of a second."""
        time.sleep(0.05)


def test_the_time_of_a_stage_inside_of_another_counts_once() -> None:
    watch, work = Stopwatch(torch.device("cpu")), Work()
    for method in ("outer", "inner"):
        watch.watch(work, method, method)
    start = time.perf_counter()
    assert work.outer() == "done"
    whole = time.perf_counter() - start
    (outer,), (inner,) = watch.seconds["outer"], watch.seconds["inner"]
    assert inner >= 0.05
    assert 0 <= outer <= whole - inner


def test_the_stages_of_a_recipe() -> None:
    command = [sys.executable, "-m", "benchmarks.meta.stages", "recipes/mnist5k_policy.yaml", "--updates", "8"]
    words = ["meta.every=4", "train.batch_size=16", "meta.batch_size=16"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=250, check=True)
    assert "at K = 10: " in done.stdout
    for stage in ("engine", "validation gradient", "evidence", "meta-optimizer"):
        assert f"  {stage:<26}" in done.stdout

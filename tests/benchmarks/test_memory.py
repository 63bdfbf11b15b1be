"""The test of flatness on made-up courses of memory; with -m slow on real loaders."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import memory

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_memory.py"


def course(growth: float, epochs: int = 20) -> list[float]:
    """MiB after every epoch: filling, then a slope under noise, and one reading that is far off."""
    draw = np.random.default_rng(0)
    values = 500 + growth * np.arange(epochs) + draw.normal(0, 2, epochs)
    values[:3] -= [100, 50, 20]
    values[7] += 80
    return [float(value) for value in values]


@pytest.mark.parametrize(("growth", "flat"), [(0.0, True), (-3.0, True), (0.1, True), (2.0, False), (10.0, False)])
def test_growth_is_told_from_noise(growth: float, flat: bool) -> None:
    after = course(growth)
    assert memory.is_flat(after) == flat
    assert memory.slope(after)["slope"] == pytest.approx(growth, abs=0.2)


def test_gates() -> None:
    ours, theirs = ({"peak": peak, "after_epochs": course(0)} for peak in (600.0, 500.0))
    assert memory.summary({"fastaug": ours, "torchvision": theirs})["gates"] == {
        "peak_over_torchvision <= 1": False,
        "flat": True,
    }
    leaks = {"peak": 400.0, "after_epochs": course(5)}
    assert memory.summary({"fastaug": leaks, "torchvision": theirs})["gates"] == {
        "peak_over_torchvision <= 1": True,
        "flat": False,
    }


def test_memory_of_a_process_that_has_ended_is_none() -> None:
    program = "print('up', flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"  # the interpreter is in memory
        watched = psutil.Process(process.pid)
        assert memory.tree_memory(watched) > 1
        process.communicate(b"\n")
    assert memory.tree_memory(watched) == 0


@pytest.mark.slow
def test_on_real_loaders(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--epochs", "8", "--images", "256", "--json", str(tmp_path / "out.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    written = json.loads((tmp_path / "out.json").read_text())
    assert ended.returncode == 0, ended.stdout
    assert all(len(run["after_epochs"]) == 8 for run in written["runs"].values())

"""Engines and libraries do the same step: against float64 written by hand, and against each other one step later."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.meta import measure
from benchmarks.meta.methods import METHODS
from benchmarks.meta.peers import PEERS, UPDATES
from benchmarks.meta.task import Setting, agreement, new_task, plain, reference, train

EXACT = ("ours forward", "ours functional", "ours reverse", "ours unroll", "higher")
DIFFERENCES = ("ours difference", "ours difference central")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def setting() -> Any:
    return Setting("test_resnet", side=32, batch=4, classes=5)


def steps(name: str, task: Any, count: int = 1) -> list[Tensor]:
    """The hypergradients of the first steps."""
    step = (METHODS.get(name) or PEERS[name].build)(task)
    return [step() for _ in range(count)]


def worst(found: Tensor, truth: Tensor, task: Any) -> float:
    """The largest relative error of a group."""
    return max(group["relative_error"] for group in agreement(found, truth, task).values())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("part", [pytest.param("weights", marks=pytest.mark.slow), "all"])
def test_exact_methods_agree_with_float64(part: str, name: str, setting: Any) -> None:
    task = new_task(setting, part)
    truth = reference(task)
    assert truth.shape == ((4,) if part == "weights" else (8,))
    assert truth.dtype == torch.float64
    (single,), (double,) = steps(name, task), steps(name, task.cast(torch.float64))
    assert worst(single, truth, task) < 1e-3
    assert worst(double, truth, task) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", UPDATES)
def test_several_updates_agree_with_float64(name: str, setting: Any) -> None:
    task = new_task(setting, "all").cast(torch.float64)
    truth, count = reference(task, UPDATES[name]), UPDATES[name]
    assert count == 3
    found, later = steps(name, task, 2)
    assert worst(found, truth, task) < 1e-10
    assert worst(found, reference(task), task) > 0.1
    ones = steps("ours unroll", task, count + 1)  # the real updates are taken: the next window begins where they end
    assert worst(later, steps("ours unroll 3 updates", task, 2)[1], task) < 1e-9
    assert worst(found, ones[0], task) > 0.1


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_have_their_known_error_and_refuse_magnitudes(name: str, setting: Any) -> None:
    task = new_task(setting, "weights")
    (found,) = steps(name, task)
    assert 1e-4 < worst(found, reference(task), task) < 0.1
    with pytest.raises(ValueError, match="finite differences of image gradients are wrong"):
        steps(name, new_task(setting, "all"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EXACT, "ours difference"])
def test_every_method_takes_the_real_step(name: str, setting: Any) -> None:
    """Three steps on, the hypergradient is that of a method that trains as torch does."""
    task = new_task(setting, "weights").cast(torch.float64)
    found, truth = steps(name, task, 3)[-1], steps("ours reverse", task, 3)[-1]
    assert worst(truth, steps("ours reverse", task)[0], task) > 0.2
    assert worst(found, truth, task) < (0.1 if "difference" in name else 1e-9)


def test_plain_steps_train_as_torch_does(setting: Any) -> None:
    task = new_task(setting, "all")
    network, optimizer = task.start()
    before = [p.detach().clone() for p in network.parameters()]
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in network.parameters()]
    train(network, optimizer, task)
    for p, old, buffer in zip(network.parameters(), before, buffers, strict=True):
        new = optimizer.state[p]["momentum_buffer"]
        torch.testing.assert_close(p.detach(), old - setting.lr * new)
        assert p.ndim == 1 or not torch.equal(new, setting.momentum * buffer)
    assert all(p.grad is None for p in [*network.parameters(), *task.parameters()])
    assert not len(plain(task)())


@pytest.mark.slow
def test_rows_of_processes_and_of_what_cannot_run(setting: Any, tmp_path: Path) -> None:
    missing = {"betty": str(tmp_path / "python")}
    rows, gates = measure.measure(["ours forward", "betty darts"], ["all"], 1, 1, missing, setting, pairs=1)
    ours, betty = rows
    assert ours["cosine"] > 0.999999
    assert ours["relative_error"] < 1e-3
    assert ours["t0_cpu"] > 0
    assert ours["memory_mib"] > 1
    assert betty == {"method": "betty darts", "part": "all", "reason": betty["reason"]}
    assert "No such file" in betty["reason"]
    assert gates == {"ours forward, all: cosine >= 0.999": True}
    assert all(len(cells) == len(measure.HEADER) for cells in measure.table(rows))
    json.dumps(rows)


def test_an_engine_without_figures_fails_its_gate(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise measure.AbsentError("RuntimeError: no kernel")

    monkeypatch.setattr(measure, "_run", fails)
    rows, gates = measure.measure(["ours reverse"], ["weights"], 2, 1, {}, setting)
    assert rows == [{"method": "ours reverse", "part": "weights", "reason": "RuntimeError: no kernel"}]
    assert not any(gates.values())
    with pytest.raises(ValueError, match="no library is called 'bety'"):
        measure.measure([], [], 1, 1, {"bety": sys.executable})


def test_rounds_are_interleaved_and_turned_around(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(_: str, words: list[str], __: int) -> dict[str, float]:
        order.append(words[0])
        clocks = [f"{name}_{clock}" for name in ("seconds", "plain_seconds", "t0") for clock in ("wall", "cpu")]
        return dict.fromkeys(clocks, float(len(order))) | {"memory_mib": 100.0 if words[0] == "plain" else 150.0}

    monkeypatch.setattr(measure, "_run", run)
    rows, _ = measure.measure(["plain", "higher"], ["weights"], 3, 1, {}, setting)
    assert order == ["plain", "higher", "higher", "plain", "plain", "higher"]
    assert [row["t0_wall"] for row in rows] == [4, 3]
    assert rows[1]["memory_mib_over_plain"] == 1.5
    assert rows[1]["seconds_cpu_over_plain"] == 0.75


def test_the_reason_is_the_first_line_of_the_last_error() -> None:
    code = "try:\n  1/0\nexcept ZeroDivisionError:\n  raise ValueError('two\\nlines')"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert measure.reason(text) == "ValueError: two"
    assert measure.reason("killed\n") == "killed"
    assert measure.reason("") == ""

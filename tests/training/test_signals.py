import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastaug.training.signals import StopRequest

ROOT = Path(__file__).resolve().parents[2]
WAIT = """
import sys, time
sys.path.insert(0, {root!r})
from fastaug.training.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.reason() is None:
        time.sleep(0.01)
    print(stop.reason(), flush=True)
    {then}
print("left", flush=True)
"""


@pytest.fixture(autouse=True)
def _handlers_untouched() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


def waiting(then: str = "pass") -> "subprocess.Popen[str]":
    code = WAIT.format(root=str(ROOT), then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_a_reason(name: str) -> None:
    with StopRequest() as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.reason() == f"signal {name}"
        assert stop.reason() == f"signal {name}"


def test_a_process_that_is_signalled_once_ends_by_itself() -> None:
    process = waiting()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert output == "signal SIGTERM\nleft\n"
    assert process.returncode == 0


@pytest.mark.parametrize("pause", [0.0, 1.5])
def test_only_a_later_second_ctrl_c_ends_the_process_at_once(pause: float) -> None:
    process = waiting(then="time.sleep(4)")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "signal SIGINT\n"
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=10)
    assert (process.returncode == 0) == (pause == 0), output


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGTERM")])
def test_repeats_from_schedulers_and_launchers_change_nothing(first: str, second: str) -> None:
    process = waiting(then="time.sleep(2)")
    process.send_signal(getattr(signal, first))
    assert process.stdout is not None
    assert process.stdout.readline() == f"signal {first}\n"
    time.sleep(1.2)
    process.send_signal(getattr(signal, second))
    process.communicate(timeout=10)
    assert process.returncode == 0


PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(60)
"""


@pytest.mark.parametrize(("name", "watched"), [("torchrun", True), ("plain", False), ("accelerate-runs/plain", False)])
def test_a_dead_launcher_is_a_reason_and_another_dead_parent_is_none(tmp_path: Path, name: str, watched: bool) -> None:
    """A real grandchild: its parent, named as a launcher or not, is killed and cannot pass anything on."""
    parent, log = tmp_path / f"{name}.py", tmp_path / "log"
    parent.parent.mkdir(exist_ok=True)
    parent.write_text(PARENT)
    code = WAIT.format(root=str(ROOT), then="pass").replace(
        "while stop", "end = time.time() + 1.5\n    while time.time() < end and stop"
    )
    with open(log, "w") as out:
        process = subprocess.Popen([sys.executable, str(parent), code], stdout=out)
    until(lambda: "ready" in log.read_text())
    process.kill()
    process.wait()
    until(lambda: "left" in log.read_text())
    said = log.read_text().splitlines()[1]
    assert said == (f"the launcher (process {process.pid}) is gone" if watched else "None")


def until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_another_reason_is_asked_for_too_and_ctrl_c_is_told_apart() -> None:
    reasons = [None, "a callback raised", "a callback raised"]
    with StopRequest(lambda: reasons.pop(0)) as stop:
        assert stop.reason() is None
        assert stop.reason() == "a callback raised"
        assert not stop.interrupted
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason() == "signal SIGINT"
        assert stop.interrupted


def test_in_another_thread_no_handler_is_set() -> None:
    found: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            found.extend([signal.getsignal(signal.SIGTERM), stop.reason()])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, None]

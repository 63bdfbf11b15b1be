"""Which process is named as late, from what all of them tell; real processes, one of which stands still or is slow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fastaug.training.late_processes import Beat, Judge, Pulse

NAMES = {0: "process 0 on a", 1: "process 1 on b", 2: "process 2 on b"}


def said(told: Callable[[int], dict[int, Beat]], until: int = 100, patience: float = 30) -> list[tuple[int, str]]:
    """What is said of the beats told(second), every 5 seconds."""
    judge = Judge(NAMES, patience)
    return [(second, line) for second in range(0, until, 5) for line in judge.see(told(second), second)]


def beats(second: int, **changed: tuple[int, int, float]) -> dict[int, Beat]:
    """Those of three processes that beat every second, make an update each and take half of it for themselves."""
    usual = {rank: Beat(second, second, second / 2) for rank in NAMES}
    return usual | {int(name[1:]): Beat(*values) for name, values in changed.items()}


def test_nobody_is_late_where_all_go_on_or_all_stand_still() -> None:
    assert said(beats) == []
    assert said(lambda second: {rank: Beat(second, 7, 3.5) for rank in NAMES}) == []  # a checkpoint, an evaluation
    assert said(lambda second: beats(second, r1=(second, second - 1, second / 2))) == []  # seen a little earlier


def test_a_process_that_is_not_heard_is_named_once_with_its_host_and_update_and_when_it_goes_on() -> None:
    found = said(lambda second: beats(second if second >= 80 else min(second, 20)) | {0: Beat(second, 20, 9)})
    assert [line for line in found if "process 2" in line[1]] == [
        (55, "process 2 on b does not answer for 35 s, after update 20"),
        (80, "process 2 on b goes on"),
    ]


def test_a_process_that_beats_but_does_not_come_to_the_update_of_the_others_is_named() -> None:
    found = said(lambda second: {0: Beat(second, 21, 9), 1: Beat(second, 20, 9), 2: Beat(second, 21, 9)})
    assert found == [(35, "process 1 on b does not come to update 21 for 35 s, after update 20")]


def test_a_process_that_is_a_moment_behind_after_all_stood_still_is_not_named() -> None:
    def after_a_checkpoint(second: int) -> dict[int, Beat]:
        done = 20 if second < 60 else 21
        return {0: Beat(second, done, 9), 1: Beat(second, done, 9), 2: Beat(second, min(done, 20 + (second > 60)), 9)}

    assert said(after_a_checkpoint) == []


def test_a_slow_process_is_named_once() -> None:
    found = said(lambda second: beats(second, r1=(second, second, 0.9 * second)))
    assert found == [
        (
            35,
            "process 1 on b is slow: loading and forward pass take 90% of its time and 50% of the others', who wait "
            "for it",
        )
    ]
    assert said(lambda second: beats(second, r1=(second, second, 0.65 * second))) == []  # 15 % of the time


def test_slowness_is_not_judged_by_the_first_update() -> None:
    """It takes process 1 30 seconds and the others 10; from then on all are even."""

    def told(second: int) -> dict[int, Beat]:
        first = {0: 10, 1: 30, 2: 10}
        done = max(0, second - 29)
        return {rank: Beat(second, done, done and first[rank] + done / 2) for rank in NAMES}

    assert said(told) == []


def test_one_process_alone_is_never_behind_or_slow() -> None:
    judge = Judge(NAMES)
    assert [line for second in range(0, 100, 5) for line in judge.see({0: Beat(second, second, second)}, second)] == []


def test_a_beat_is_read_as_it_was_written() -> None:
    beat = Beat(3, 41, 0.1 + 0.2)
    assert Beat.read(str(beat)) == beat


def test_the_wait_for_others_is_not_a_process_s_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 50.0, 53.0])
    monkeypatch.setattr("fastaug.training.late_processes.time.perf_counter", lambda: next(times))
    pulse = Pulse()
    for step in (0, 1):
        pulse.begin()
        pulse.arrive(step)
    assert (pulse.updates, pulse.seconds) == (2, 5.0)


RANKS = """
import os, signal, sys, time
import torch.distributed as dist
from fastaug.training.late_processes import Pulse, Watch
dist.init_process_group("gloo")
rank, pulse, kind = dist.get_rank(), Pulse(), sys.argv[1]
sys.stdout = open(os.path.join(os.path.dirname(__file__), f"{rank}.txt"), "w")
with Watch(pulse, ["a", "b", "c"], rank, every=0.1, patience=1):
    for step in range(30):
        pulse.begin()
        if rank == 1 and kind == "slow":
            time.sleep(0.1)
        if rank == 1 and kind == "stands" and step == 5:
            time.sleep(3)
        if rank == 0 and kind == "stopped" and step == 5:  # with the store, which is in this process
            child = os.fork()
            if not child:
                time.sleep(4)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.waitpid(child, 0)
        pulse.arrive(step)
        dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("slow", "waiting: process 1 on b is slow: loading and forward pass take"),
        ("stands", "waiting: process 1 on b does not come to update 6 for 1 s, after update 5"),
        ("stopped", "waiting: process 0 on a does not answer for 1 s, after update"),
    ],
)
def test_real_processes_tell_each_other(
    kind: str, expected: str, tmp_path: Path, in_processes: Callable[..., str]
) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    in_processes(3, tmp_path / "ranks.py", kind)
    assert sum((tmp_path / f"{rank}.txt").read_text().count(expected) for rank in range(3)) == 1

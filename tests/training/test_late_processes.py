"""Which process is named as late, from what all of them tell; real processes, one of which stands still or is slow."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastaug.training.late_processes import Beat, Judge, Pulse

NAMES = {0: "process 0 on a", 1: "process 1 on b", 2: "process 2 on b"}


def said(told: Callable[[int], dict[int, Beat]], until: int = 100, patience: float = 30) -> list[tuple[int, str]]:
    """What is said of the beats told(second), every 5 seconds."""
    judge = Judge(NAMES, patience=patience)
    return [(second, line) for second in range(0, until, 5) for line in judge.see(told(second), second)]


def beats(second: int, **changed: tuple[int, int, float]) -> dict[int, Beat]:
    """Those of three processes that beat every second, make an update each and take half of it for themselves."""
    usual = {rank: Beat(second, second, second / 2) for rank in NAMES}
    return usual | {int(name[1:]): Beat(*values) for name, values in changed.items()}


def test_nobody_is_late_where_all_go_on_or_all_stand_still() -> None:
    assert said(beats) == []
    assert said(lambda second: {rank: Beat(second, 7, 3.5) for rank in NAMES}) == []  # an evaluation
    assert said(lambda second: beats(second, r1=(second, second - 1, second / 2))) == []  # seen a little earlier


def test_a_process_that_is_not_heard_is_named_once_with_its_host_and_update_and_when_it_goes_on() -> None:
    found = said(lambda second: beats(second if second >= 80 else min(second, 20)) | {0: Beat(second, 20, 9)})
    assert [line for line in found if "process 2" in line[1]] == [
        (55, "process 2 on b does not answer for 35 s, after update 20"),
        (80, "process 2 on b goes on"),
    ]


def test_a_process_that_beats_but_does_not_come_to_the_update_of_the_others_is_named() -> None:
    found = said(lambda second: {0: Beat(second, 21, 9), 1: Beat(second, 20, 9), 2: Beat(second, 21, 9)})
    assert found == [(35, "process 1 on b does not come to update 21 for 35 s, after update 20: it trains")]


def test_a_process_that_waits_for_one_in_the_same_update_is_not_named_but_that_one() -> None:
    """Process 1 has loaded the first of the micro-batches of update 21, and the others the second one."""
    found = said(
        lambda second: {rank: Beat(second, 20, 9, 1 if rank == 1 else 2, "loads and augments") for rank in NAMES}
    )
    assert found == [(35, "process 1 on b does not come to update 21 for 35 s, after update 20: it loads and augments")]


def test_the_main_process_is_said_to_save_where_the_others_wait_for_its_checkpoint() -> None:
    def checkpoint(second: int) -> dict[int, Beat]:
        """Of 50 seconds from update 20 on, which only the main process writes; the others load update 21."""
        others = {rank: Beat(second, 20 + (second >= 10), 9) for rank in (1, 2)}
        return others | {
            0: Beat(second, 20 + (second >= 60), 9, doing="saves a checkpoint" * (second < 60) or "trains")
        }

    assert said(checkpoint) == [
        (45, "process 0 on a does not come to update 21 for 35 s, after update 20: it saves a checkpoint"),
        (60, "process 0 on a goes on"),
    ]


def test_a_process_that_is_a_moment_behind_after_all_stood_still_is_not_named() -> None:
    def after_an_evaluation(second: int) -> dict[int, Beat]:
        done = 20 if second < 60 else 21
        return {0: Beat(second, done, 9), 1: Beat(second, done, 9), 2: Beat(second, min(done, 20 + (second > 60)), 9)}

    assert said(after_an_evaluation) == []


def test_after_a_start_that_continues_nobody_is_said_to_be_after_update_0() -> None:
    """Process 2 does not come to the end of loading the checkpoint."""

    def told(second: int) -> dict[int, Beat]:
        return {0: Beat(second, 501, 1), 1: Beat(second, 501, 1), 2: Beat(second, 0, 0, doing="starts")}

    assert said(told) == [(35, "process 2 on b does not come to update 501 for 35 s: it starts")]


@pytest.mark.parametrize("paused", [20, 300])
def test_a_pause_of_the_whole_job_is_nobody_s_silence_or_slowness(paused: int) -> None:
    """All are stopped at second 50; process 1 was loading, which counts the pause as its time, and is heard last."""
    judge, lines = Judge(NAMES), []
    for second in (*range(0, 51, 5), *range(50 + paused, 250 + paused, 5)):
        done = second - paused if second >= 55 + paused else min(second, 50)
        own = {rank: done / 2 + (rank == 1 and second >= 60 + paused) * paused for rank in NAMES}
        beats = {rank: Beat(done - 2 * (rank == 1 and second == 55 + paused), done, own[rank]) for rank in NAMES}
        lines += judge.see(beats, second)
    assert lines == []


def test_a_slow_process_is_named_once() -> None:
    found = said(lambda second: beats(second, r1=(second, second, 0.9 * second)))
    assert found == [
        (
            35,
            "process 1 on b is slow: loading and augmenting take 90% of its time and 50% of the others', who wait "
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
    times = iter([10.0, 12.0, 50.0, 53.0, 60.0, 61.0])
    monkeypatch.setattr("fastaug.training.late_processes.time.perf_counter", lambda: next(times))
    pulse = Pulse()
    for loaded in (1, 2, 3):
        pulse.begin()
        assert pulse.doing == "loads and augments"
        pulse.arrive(loaded, accumulate=2)
    assert (pulse.place, pulse.seconds, pulse.doing) == ((1, 1), 6.0, "trains")


# Every process of a run of two, whose network has BatchNorm: its forward pass takes buffers from process 0.
RUN = """
import os, sys, time
from functools import partial
from fastaug.augment.pipeline import BatchAugment
from fastaug.recipe.reading import read_recipe
from fastaug.training import worker
rank, number = int(os.environ["RANK"]), 0
sys.stdout = open(os.path.join(os.path.dirname(__file__), f"{rank}.txt"), "w")
worker.Watch = partial(worker.Watch, every=0.2, patience=1.5)
augmented = BatchAugment.training
def late(self, *batch):
    global number
    number += 1
    time.sleep(5 if number == 3 * (rank + 1) else 0)  # process 0 before its 3rd update, process 1 before its 6th
    return augmented(self, *batch)
BatchAugment.training = late
sys.exit(worker.run(read_recipe(sys.argv[1], sys.argv[2:]), quiet=rank == 1))
"""
RECIPE = """
data: {img_size: 20, crop: center, threads: 1, test_fraction: 0.2}
model: {name: test_resnet}
train: {epochs: 2, batch_size: 4}
eval: {every: 0}
"""


@pytest.mark.slow
def test_of_processes_that_wait_in_the_forward_pass_of_a_run_for_one_that_loads_that_one_is_named(
    tmp_path: Path, jpeg_folder: Callable[..., Path], in_processes: Callable[..., str]
) -> None:
    (tmp_path / "ranks.py").write_text(RUN)
    (tmp_path / "r.yaml").write_text(RECIPE)
    keys = [f"data.root={jpeg_folder(images=10)}", f"run.dir={tmp_path / 'run'}"]
    in_processes(2, tmp_path / "ranks.py", tmp_path / "r.yaml", *keys)
    told, quiet = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    found = re.findall(r"waiting: process (\d) on \S+ (.*) for \d+ s, (.*)", told)
    assert set(found) == {
        ("0", "does not come to update 3", "after update 2: it loads and augments"),
        ("1", "does not come to update 6", "after update 5: it loads and augments"),
    }
    assert quiet == ""


RANKS = """
import os, signal, sys, time
import torch.distributed as dist
from fastaug.console import Console
from fastaug.training.late_processes import Pulse, Watch
dist.init_process_group("gloo")
rank, pulse, kind = dist.get_rank(), Pulse(), sys.argv[1]
sys.stdout = open(os.path.join(os.path.dirname(__file__), f"{rank}.txt"), "w")
with Watch(pulse, ["a", "b", "c"], rank, Console(True), every=0.2, patience=1.5):
    for step in range(60 if kind == "slow" else 10):
        pulse.begin()
        if rank == 1 and kind == "slow":
            time.sleep(0.1)
        if rank == 0 and kind == "stopped" and step == 5:  # with the store, which is in this process
            child = os.fork()
            if not child:
                time.sleep(5)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.waitpid(child, 0)
        pulse.arrive(step + 1)
        dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        pytest.param("slow", "process 1 on b is slow: loading and augmenting take", marks=pytest.mark.slow),
        ("stopped", r"process 0 on a does not answer for \d+ s"),
    ],
)
def test_real_processes_tell_each_other(
    kind: str, expected: str, tmp_path: Path, in_processes: Callable[..., str]
) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    in_processes(3, tmp_path / "ranks.py", kind)
    said = [line for rank in range(3) for line in (tmp_path / f"{rank}.txt").read_text().splitlines()]
    assert any(re.match(f"waiting: {expected}", line) for line in said), said
    assert {line[:21] for line in said} == {f"waiting: {expected[:12]}"}

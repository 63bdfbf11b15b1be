import os
import threading

import pytest
import torch

from fastaug.ops.crop_mix.cpu import team


@pytest.fixture(params=["openmp", "pool"])
def threads(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(team, "_openmp", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_every_sample_is_done_once(n):
    done, lock = [], threading.Lock()

    def run(start, stop):
        with lock:
            done.extend(range(start, stop))

    team.in_threads(run, n)
    assert sorted(done) == list(range(n))


@pytest.mark.usefixtures("threads")
def test_the_work_is_shared_between_threads():
    seen, meeting = set(), threading.Barrier(2, timeout=20)

    def run(start, stop):
        meeting.wait()  # only passed when both shares run at once
        seen.add((threading.get_ident(), start, stop))

    team.in_threads(run, 10)
    assert {(start, stop) for _, start, stop in seen} == {(0, 5), (5, 10)}
    assert len({thread for thread, _, _ in seen}) == 2


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bad", [0, 5])
def test_an_error_in_any_thread_is_raised(bad):
    def run(start, _stop):
        if start == bad:
            raise ValueError(f"share {start}")

    with pytest.raises(ValueError, match=f"share {bad}"):
        team.in_threads(run, 10)


def test_one_thread_runs_in_the_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seen = []
    team.in_threads(lambda start, stop: seen.append((threading.get_ident(), start, stop)), 9)
    torch.set_num_threads(before)
    assert seen == [(threading.get_ident(), 0, 9)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.usefixtures("threads")
def test_a_forked_child_does_not_use_its_parents_threads():
    team.in_threads(lambda *_: None, 4)
    child = os.fork()
    if not child:
        done = []
        team.in_threads(lambda start, stop: done.extend(range(start, stop)), 8)
        os._exit(0 if sorted(done) == list(range(8)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""What a meta step adds to an update: the arithmetic, and a real recipe measured."""

import sys
import time

import pytest
import torch

from benchmarks.meta.stages import Stopwatch, Updates, main


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


@pytest.mark.slow
def test_the_stages_of_a_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["meta.every=2", "train.batch_size=16", "meta.batch_size=16", "data.img_size=16"]
    monkeypatch.setattr(sys, "argv", ["stages", "mnist5k_policy", "--updates", "4", *words])
    main()
    told = capsys.readouterr().out
    assert "at K = 10: " in told
    for stage in ("engine", "validation gradient", "evidence", "meta-optimizer"):
        assert f"  {stage:<26}" in told

"""What counts as flat, what two runs have to have in common, and a short run through faults."""

import json
from pathlib import Path

import pytest

from attacks.soak import differences, measured, soak
from attacks.watched import Sample, grown, slopes


def samples(memory: float = 0.0, files: float = 0.0) -> list[Sample]:
    """400 samples over 1,000 updates: growth to those, after a start that fills pools, with peaks."""
    steps = range(0, 1000, 5)
    peak = {300: 500, 800: 70}
    return [
        Sample(
            step,
            100 + memory * step / 1000 + peak.get(step, 0) - 90 * (step < 200),
            9 + round(files * step / 1000),
            3,
            0,
        )
        for step in steps
        for _ in range(2)
    ]


def test_what_is_flat_and_what_grows() -> None:
    assert grown(samples()) == []
    assert grown(samples(memory=0.9)) == []
    assert grown(samples(memory=1.5)) == ["memory_mib grew by 1.5 in 1,000 updates"]
    assert slopes(samples(files=20))["files"] == pytest.approx(20, rel=0.1)
    assert grown(samples(files=20))[0].startswith("files grew by 20")


def test_too_few_updates_give_no_slope() -> None:
    with pytest.raises(ValueError, match="train for longer"):
        slopes(samples()[:16])
    (problem,) = measured(samples()[:16])["problems"]  # beside what else is wrong
    assert "too few for a slope" in problem
    assert measured(samples(files=20))["problems"][0].startswith("files grew by 20")


def write_run(run: Path, loss: float, stops: tuple[int, ...], learned: tuple[int, ...]) -> Path:
    """The logs of a run of 30 updates that a signal stopped at some, which tells there what is learned."""
    run.mkdir()
    meta = [{"event": "meta", "step": step, "size": 1.0} for step in (4, 24)]
    told = [{"event": "learned", "step": step, "value": step / 10} for step in learned]
    train = [{"event": "train", "step": 30, "loss": loss, "images_per_second": 100 * loss}]
    skipped = [{"step": 10 + len(stops), "path": "a", "reason": "no image"}]
    starts = [{"step": step} for step in (0, *stops)]
    logs = {"starts": starts, "metrics": meta + told + train if stops else train + told + meta, "skipped": skipped}
    for name, lines in logs.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_runs_are_compared_but_for_what_a_stop_moves(tmp_path: Path) -> None:
    calm = write_run(tmp_path / "calm", 0.5, (), (10, 20, 30))
    assert differences(calm, write_run(tmp_path / "same", 0.5, (24,), (10, 20, 24))) == []
    assert differences(calm, write_run(tmp_path / "lost", 0.5, (24,), (10, 24))) != []  # no stop before 20
    other = write_run(tmp_path / "other", 0.25, (24,), (10, 20, 24))
    (other / "half.tmp").touch()
    assert differences(calm, other) == [
        "metrics.jsonl: line 5 (step 30), loss: 0.5 against 0.25",
        "half.tmp: in one alone",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_through_faults_ends_as_one_without(tmp_path: Path) -> None:
    found = soak(tmp_path, epochs=12, ends=3, every=10)  # fewer updates between checkpoints give more samples
    assert [problem for problem in found["problems"] if "memory_mib grew" not in problem] == []  # pools still fill
    assert {"SIGTERM", "SIGKILL, checkpoint damaged", "disk full"} <= found["met"].keys()

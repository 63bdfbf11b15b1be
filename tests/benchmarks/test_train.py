"""The benchmark of training: bounds and ratios are what they say, and a short run works."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import train
from benchmarks.peers import forms, repository_train
from benchmarks.peers.job import Job

REPO = Path(__file__).resolve().parents[2]


def round_of(peer: str, mode: str, speed: float, turn: int) -> dict[str, Any]:
    speeds = {"images_per_second": speed, "images_per_core_second": speed}
    return {"model": "net", "peer": peer, "mode": mode, "round": turn, **speeds}


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1, max_size=5), st.floats(0.1, 1))
def test_training_at_a_share_of_the_bound(speeds: list[tuple[float, float]], share: float) -> None:
    rounds = []
    for turn, (load, compute) in enumerate(speeds):
        seconds = 1 / load + 1 / compute  # of one image, when both take turns on the same cores
        for mode, speed in (("load", load), ("compute", compute), ("train", share / seconds)):
            rounds += [round_of(peer, mode, speed, turn) for peer in ("ours", "timm")]
    found = train.train_figures(rounds)
    assert found["train_share_of_bound"] == pytest.approx(share)
    assert found["net_train_over_timm"] == pytest.approx(1)


def held(peer: str, hold: float, period: float) -> dict[str, Any]:
    """A round of a consumer that holds a batch of 64 `hold` ms, behind a loader that needs `period` ms for one."""
    wall = max(hold, period) / 1000
    speed, idle = 64 / wall, max(period - hold, 0) / 1000 / wall
    return {"peer": peer, "hold_ms": hold, "wall": wall, "batches": 1, "images_per_second": speed, "idle_share": idle}


def test_the_stand_in_is_judged_where_a_loader_is_the_limit() -> None:
    rounds = [held("ours", t, 40) for t in (0, 20, 50, 100)] + [held("timm", t, 80) for t in (0, 20, 50, 100)]
    found = train.stand_in_figures(rounds)
    assert found["hold_20ms_over_timm"] == pytest.approx(2)
    assert found["hold_100ms_over_timm"] == pytest.approx(1)  # neither loader is the limit
    assert found["stall_over_timm"] == pytest.approx(80 / 50)
    assert found["idle_where_not_loader_bound"] == 0  # at 50 and 100 ms
    assert train.gates_of(found) == {"stall_over_timm >= 1.3": True, "idle_where_not_loader_bound <= 0.02": True}


def test_the_repository_train_py_is_read_by_its_log_lines(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    line = "Train: 0 [   0/8 ( 12%)]  Loss: 2.1 (2.1)  Time: 0.250s,  128.00/s  (0.2s, 130.00/s)  LR: 1e-2  Data: 0.1"
    script.write_text(f"for _ in range(100): print({line!r}, flush=True)\nimport time; time.sleep(60)")
    job = Job("", 32, 1, model="test_resnet")
    assert repository_train.rate([sys.executable, str(script)], job, 1.0, {}) == pytest.approx(128)
    script.write_text("raise SystemExit('no such option')")
    with pytest.raises(repository_train.PeerError, match="no such option"):
        repository_train.rate([sys.executable, str(script)], job, 1.0, {})


def test_the_repository_gets_long_epochs_from_few_files(tmp_path: Path) -> None:
    forms.write_set(tmp_path, 16)
    folder = repository_train.long_folder(tmp_path / "files", tmp_path / "long", 200)
    listed = forms.labelled_files(folder / "train")
    assert 200 <= len(listed) < 200 + 16
    assert len({path.stat().st_ino for path, _ in listed}) == 16
    words = repository_train.command(Path("train.py"), Job("", 32, 1, model="test_resnet"), folder, tmp_path)
    assert words[words.index("--num-classes") + 1] == "8"


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    words = ["--models", "test_resnet", "--side", "32", "--batch", "16", "--images", "32", "--threads", "1"]
    words += ["--rounds", "1", "--seconds", "0.2", "--hold-ms", "1", "--json", str(tmp_path / "out.json")]
    command = [sys.executable, str(REPO / "tools/bench_train.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert {(r["peer"], r["mode"]) for r in found["train"]} == {
        (peer, mode) for peer in ("ours", "timm") for mode in train.MODES
    }
    assert all(r["images"] > 0 and r["cpu"] > 0 for r in found["train"] + found["stand_in"])
    assert {r["hold_ms"] for r in found["stand_in"]} == {0, 1}
    assert found["figures"]["train_share_of_bound"] > 0
    assert "timm train.py" in found["absent"]
    assert "timm train.py: not asked for" in ended.stdout


def test_refuses_a_train_py_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--timm-train", "nowhere/train.py"])
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    assert "no file nowhere/train.py" in capsys.readouterr().err

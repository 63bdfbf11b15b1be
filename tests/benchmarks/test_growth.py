"""The growth law on figures made up for it; with -m slow on real folders."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import growth
from benchmarks.photo_folder import make_photo_folder
from fastaug.data.index import load_index

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_growth.py"


def runs(power: float, first_batch: float = 1.0) -> dict[int, list[dict[str, Any]]]:
    """Figures of three sizes that grow with a power of them."""
    found = {}
    for n in (5_000, 50_000, 500_000):
        seconds = {name: {"wall": 1e-6 * n**power, "cpu": 1e-6 * n**power} for name in growth.SCALED}
        seconds["first batch cached"]["wall"] = first_batch
        seconds["imports"] = {"wall": 5.0, "cpu": 5.0}
        found[n] = [{"seconds": seconds}] * 3
    return found


@pytest.mark.parametrize(("power", "passes"), [(0.3, True), (1.0, True), (1.1, True), (1.3, False), (2.0, False)])
def test_faster_than_linear_is_told(power: float, passes: bool) -> None:
    result = growth.summary(runs(power))
    assert result["figures"]["splits_exponent"] == pytest.approx(power)
    assert all(result["gates"].values()) == passes


def test_a_late_first_batch_is_told() -> None:
    gates = growth.summary(runs(1.0, first_batch=5.1))["gates"]
    assert [name for name, passed in gates.items() if not passed] == ["first batch < 5.0 s"]


def test_one_step_that_grows_is_enough() -> None:
    found = runs(0.5)
    found[500_000][0]["seconds"]["splits"]["cpu"] *= 100  # the same dictionary three times
    assert not growth.summary(found)["gates"]["splits_exponent <= 1.15"]


def test_a_large_folder_is_mostly_links(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", 60, 4, distinct=5)
    index = load_index(root, cache=tmp_path / "cache")
    assert (len(index), len(index.classes), index.reasons) == (60, 4, {})
    assert {(int(h), int(w)) for h, w in zip(index.heights, index.widths, strict=True)} == {(375, 500)}
    assert len({os.stat(index.path(i)).st_ino for i in range(60)}) == 5


@pytest.mark.slow
def test_start_up_and_epochs_grow_no_faster_than_the_files(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--files", "3000", "30000", "--repetitions", "1", "--work", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True, check=False
    )
    gates = json.loads((tmp_path / "out.json").read_text())["gates"]
    assert all(gates.values()), ended.stdout
    assert ended.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.json"}


@pytest.mark.slow
def test_learned_tables_are_measured_to_the_end(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--tables", "--files", "500", "6000", "--steps", "1", "--work", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--json", str(tmp_path / "out.json")], capture_output=True, text=True, check=False
    )
    assert ended.returncode in (0, 1), ended.stderr  # 1: single steps differ by more than 2 %
    found = json.loads((tmp_path / "out.json").read_text())
    assert [name for name, passed in found["gates"].items() if not passed] in ([], ["step ratio <= 1.02"])
    assert [found["figures"][f"{name}_bytes"] for name in ("weights", "labels", "sample_policy")] == [13, 93, 117]
    assert [len(took) for took in found["repetitions"]["steps"].values()] == [1, 1]


def test_steps_that_grow_with_the_table_are_told() -> None:
    rows = {"weights": 13, "labels": 93, "sample_policy": 117}
    found = {"bytes": rows, "seconds": {"start 9": {"wall": 1.0}}, "saves": {}, "peak_rss_mib": 1.0}
    gates = growth.summary_of_tables({**found, "steps": {5: [1.0, 1.1, 1.0], 9: [1.1, 1.1, 1.0]}})["gates"]
    assert [name for name, passed in gates.items() if not passed] == ["step ratio <= 1.02"]


@pytest.mark.parametrize("words", [["--files", "500", "600", "700"], ["--steps", "0"]])
def test_tables_are_of_two_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_growth.py", "--tables", *words])
    with pytest.raises(SystemExit) as end:
        growth.main()
    assert end.value.code == 2
    assert "--tables compares two sizes" in capsys.readouterr().err


def test_refuses_one_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_growth.py", "--files", "5000"])
    with pytest.raises(SystemExit) as end:
        growth.main()
    assert end.value.code == 2
    assert "two different sizes" in capsys.readouterr().err

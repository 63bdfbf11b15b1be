"""The gates of large indices on figures made up for them; with -m slow on real folders."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import growth, label_report, large_index


def runs(power: float = 1.0, seconds: float = 1e-7, peak: float = 1000.0) -> dict[int, list[dict[str, Any]]]:
    """Figures of the three sizes that grow with a power of them."""
    found = {}
    for n in large_index.SIZES:
        took = {name: {"wall": seconds * n**power, "cpu": seconds * n**power} for name in large_index.PHASES}
        peaks = dict.fromkeys(large_index.PARTS, peak)
        found[n] = [{"seconds": took, "peak_rss_mib": peaks, "checkpoint_megabytes": 448.0}]
    return found


@pytest.mark.parametrize(("power", "passes"), [(0.5, True), (1.0, True), (1.09, True), (1.12, False)])
def test_faster_than_linear_is_told(power: float, passes: bool) -> None:
    assert all(large_index.summary(runs(power, 1e-8))["gates"].values()) == passes


def missed(found: dict[int, list[dict[str, Any]]]) -> list[str]:
    return [name for name, passed in large_index.summary(found)["gates"].items() if not passed]


def test_what_takes_too_long_or_too_much_is_told() -> None:
    assert missed(runs(seconds=6e-7)) == ["epoch order < 5.0 s"]
    assert missed(runs(seconds=2e-6)) == ["start from cache < 20.0 s", "epoch order < 5.0 s"]
    assert missed(runs(peak=4097.0)) == [f"peak of {part} < 4096.0 MiB" for part in large_index.PARTS]


def test_the_rate_is_that_of_the_largest_size() -> None:
    assert large_index.summary(runs(seconds=1e-6))["figures"]["images_made_a_second"] == pytest.approx(1e6)


def test_the_order_alone_is_measured_on_made_up_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["large_index.py", "--order", "--files", "20000", "40000", "--json", str(file)])
    assert large_index.main() in (0, 1)  # 1: single runs of so few images grow as they like
    found = json.loads(file.read_text())
    assert all(run["seconds"].keys() == set(large_index.OF_ORDER) for (run,) in found["repetitions"].values())
    assert found["gates"].keys() == {f"epoch_{name}_exponent <= 1.1" for name in ("order", "requests")} | {
        "epoch order < 5.0 s"
    }


def test_lists_of_made_up_paths_are_read() -> None:
    found = large_index.run_lists(Path("files2000"))
    assert found["seconds"].keys() == found["beside_mib"].keys() == {"splits", "labels"}
    assert all(0 < megabytes < 10 for megabytes in found["beside_mib"].values())


def test_folders_are_refused_beside_the_order_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["large_index.py", "--order", "--files", "200", "400", "--folders", "x"])
    with pytest.raises(SystemExit):
        large_index.main()
    assert "leave out --folders" in capsys.readouterr().err


@pytest.mark.parametrize("tool", [large_index, label_report, growth])
def test_another_part_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: ModuleType
) -> None:
    monkeypatch.setattr(sys, "argv", ["tool.py", "--part", "nonsense", "."])
    with pytest.raises(SystemExit) as end:
        tool.main()
    assert end.value.code == 2
    assert f"must be one of {', '.join(tool.PARTS)}" in capsys.readouterr().err


@pytest.mark.slow
def test_real_folders_are_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--files", "600", "6000", "--folders", str(tmp_path), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["large_index.py", *words])
    assert large_index.main() in (0, 1)  # 1: single runs of so few images grow as they like
    found = json.loads((tmp_path / "out.json").read_text())
    assert not [name for name, passed in found["gates"].items() if not passed and "exponent" not in name]
    assert {path.name for path in tmp_path.iterdir()} == {"files600", "files6000", "out.json"}


@pytest.mark.slow
def test_a_large_report_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--files", "3000", "--folders", str(tmp_path), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["label_report.py", *words])
    assert label_report.main() == 0
    ((run,),) = json.loads((tmp_path / "out.json").read_text())["repetitions"].values()
    assert run["seconds"].keys() == set(label_report.PHASES)
    assert run["megabytes"].keys() == {"recipe.yaml", "samples.npz", "labels.csv", "labels.html"}

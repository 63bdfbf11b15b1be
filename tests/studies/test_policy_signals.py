"""The study of policy signals reads what earlier versions of it wrote, and tells operations apart by their reach."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(STUDIES)
    yield importlib.import_module("policy_signals")
    sys.modules.pop("policy_signals", None)


def test_a_training_is_known_by_operation_reach_and_seed(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(operation: str, error: float, **more: float) -> str:
        return json.dumps({"operation": operation, "seed": 0, "test": {"error": error}, **more})

    file = tmp_path / "responses.jsonl"
    lines = [line("rotate", 0.2), line("rotate", 0.3, reach=1, seed=1), line("rotate", 0.4, reach=0.5)]
    file.write_text("\n".join([*lines, line("blur", 0.1, reach=0.5)]))
    read = study.read_responses(file)
    assert study.errors_of(read, "rotate", 1) == [0.2, 0.3]
    assert study.errors_of(read, "rotate", 0.5) == [0.4]
    study.compare(type("Arguments", (), {"files": [file]}))
    told = capsys.readouterr().out
    assert "rotate         x 0.5: 40.0 % of 1 runs   x 1: 25.0 (7.1) % of 2 runs" in told


def test_magnitudes_are_that_share_of_the_reach(study: Any) -> None:
    full, half = (study.policy_of(["rotate"], "broad", reach).magnitudes() for reach in (1, 0.5))
    assert half.tolist() == pytest.approx((full / 2).tolist())


def test_one_operation_is_drawn_so_many_times_as_often_and_the_others_as_before(study: Any) -> None:
    transforms = [t for t in study.read_operations("broad") if t.name in ("rotate", "scale", "flip_x")]
    assert study.uneven(transforms).probabilities()[0].tolist() == pytest.approx([1 / 4] * 4)
    for times in (0.5, 2):
        shares = study.uneven(transforms, "scale", times).probabilities()[0]
        expected = [1.0, *(times if t.name == "scale" else 1.0 for t in transforms)]
        assert (shares / shares[0]).tolist() == pytest.approx(expected)


def test_trainings_with_an_operation_half_and_twice_as_often_are_told(
    study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shares.jsonl"
    found = [("none", 1, 0.3), ("scale", 0.5, 0.4), ("scale", 2, 0.2)]
    lines = [{"operation": name, "times": times, "seed": 0, "test": {"error": error}} for name, times, error in found]
    file.write_text("\n".join(map(json.dumps, lines)))
    study.compare(type("Arguments", (), {"files": [file]}))
    assert "scale          x 0.5: 40.0 % of 1 runs   x 2: 20.0 % of 1 runs" in capsys.readouterr().out

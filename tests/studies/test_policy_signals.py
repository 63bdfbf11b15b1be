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

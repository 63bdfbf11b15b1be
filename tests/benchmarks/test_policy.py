"""The benchmark of fixed policies: differences and ratios of neighbouring turns, and a short run works."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import policy


def turn(name: str, number: int, speed: float, blocked: float) -> dict[str, Any]:
    return {"name": name, "round": number, "images_per_second": speed, "blocked_ms_per_image": blocked}


def test_turns_are_compared_with_their_neighbours() -> None:
    """A machine that slows down from turn to turn changes neither figure."""
    rounds = []
    for number, slower in enumerate((1.0, 0.5, 0.1)):
        pair = [turn("plain", number, 100 * slower, 0.2), turn("policy", number, 95 * slower, 0.25)]
        rounds += pair[:: -1 if number % 2 else 1]
    found = policy.figures_of(rounds)
    assert found["policy_share_of_plain"] == pytest.approx(0.95)
    assert found["policy_blocked_ms_per_image"] == pytest.approx(0.05)
    assert set(policy.gates_of(found).values()) == {True}
    assert set(policy.gates_of({"policy_share_of_plain": 0.8, "policy_blocked_ms_per_image": 0.6}).values()) == {False}


@pytest.mark.parametrize(
    "more",
    [
        ["--model", "test_resnet"],
        pytest.param(["--model", "test_resnet", "--hold-ms", "1"], marks=pytest.mark.slow),
    ],
)
def test_a_short_run_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    file = tmp_path / "policy.json"
    words = ["--side", "32", "--batch", "8", "--images", "64", "--rounds", "1", "--steps", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_policy.py", *words, *more, "--json", str(file)])
    assert policy.main() == 0
    written = json.loads(file.read_text())
    assert {"machine", "versions", "commit", "rounds", "gates"} < written.keys()
    assert written["figures"]["policy_share_of_plain"] > 0
    assert "policy_blocked_ms_per_image" in written["figures"]
    assert [r["name"] for r in written["rounds"]] == ["plain", "policy"]

"""A few kills in the saves of a run of two processes that divide a network; and that a broken checkpoint is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attacks.sharded_kills import STAGES, check, stage
from fastaug.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_divided_run_survives_kills_in_its_saves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attacks.sharded_kills", str(tmp_path), "6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 kills" in ended.stdout


def test_checkpoints_that_are_gone_or_broken_are_told(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path / "checkpoints", 3, {"model": {"w": torch.ones(2)}}, {"step": 3})
    assert check(tmp_path, 2) == 3
    with pytest.raises(SystemExit, match="update 4 is gone"):
        check(tmp_path, 4)
    (saved / "state.pt").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"state\.pt has another size"):
        check(tmp_path, 3)


def test_how_far_a_save_had_come(tmp_path: Path) -> None:
    assert STAGES[stage(tmp_path)] == "whole"
    begun = tmp_path / "checkpoints" / "step-00000004.tmp"
    begun.mkdir(parents=True)
    found = [stage(tmp_path)]
    for number in (1, 2):
        (begun / f"shard-{number:05d}-model-00001-of-00001.safetensors").touch()
        found.append(stage(tmp_path))
    for name in ("state.pt", "manifest.json"):
        (begun / name).touch()
        found.append(stage(tmp_path))
    assert found == [0, 1, 2, 3, 4]

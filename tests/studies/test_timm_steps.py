"""Our training beside timm's own script: equal losses, rates and averages. TIMM_SCRIPT names the script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).resolve().parents[2] / "docs" / "studies" / "timm_steps.py"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_updates_have_timms_losses(tmp_path: Path) -> None:
    if not (script := os.environ.get("TIMM_SCRIPT")):
        pytest.skip("set TIMM_SCRIPT to train.py of github.com/huggingface/pytorch-image-models")
    sets = ("seresnext26t", "a2", "convnext_like")
    command = [sys.executable, str(STUDY), script, "--json", str(tmp_path / "found.json"), "--sets", *sets]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == set(sets)
    for name, each in found.items():
        assert each["updates"] >= 20
        assert each["loss"] < 1e-4, name
        assert each["lr"] < 1e-9, name
        assert each["timm"][-1]["loss"] < 0.8 * each["timm"][0]["loss"]  # something was learned
    assert found["convnext_like"]["ema"] < 1e-3

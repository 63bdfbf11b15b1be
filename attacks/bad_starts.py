"""Starts `train.py --check` on bad recipes, each in a process of its own: exit code 2, a line that helps, at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

from attacks.recipes import BadRecipe

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 1.0  # seconds of processor time: the clock on the wall would measure the others on the machine


def attack(recipe: BadRecipe, folder: Path) -> str:
    """What is wrong with how a bad recipe is refused, "" when nothing is."""
    file = folder / "recipe.yaml"
    file.write_bytes(recipe.content)
    command = [sys.executable, f"{ROOT}/fastaug/train.py", str(file), "--check", *recipe.overrides]
    before, begun = os.times(), time.monotonic()
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "no end within 30 s"
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    said = ended.stdout + ended.stderr
    if ended.returncode != 2 or "Traceback" in said:
        return f"code {ended.returncode} instead of 2: {said[-300:]}"
    if not any(recipe.expected in line for line in said.splitlines()):
        return f"{recipe.expected!r} is not said: {said[-300:]}"
    slow = seconds > PATIENCE
    return f"{seconds:.2f} s of processor time, {time.monotonic() - begun:.2f} s in all" if slow else ""

"""Provenance of a run: versions of libraries and the commit of the code."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = "fastaug", "torch", "torchvision", "timm", "accelerate", "nvidia-dali-cuda120", "nvidia-dali-cuda130"


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {name: found for name in LIBRARIES if (found := _version(name))}


@cache  # reading one takes milliseconds, and a run says them with every file it writes
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the checkout that this code runs from; None if it is none, or git is not there to tell."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

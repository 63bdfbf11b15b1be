"""Starts modules of this package in processes of their own, from any working folder, without an installed package."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(module: str, *words: str) -> list[str]:
    """`python -m module words...`; -P: nothing in the working folder is imported in place of ours."""
    return [sys.executable, "-P", "-m", module, *words]


def environment(**more: str) -> Mapping[str, str]:
    """The surroundings in which `command` finds this package, with `more` variables."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), **more}

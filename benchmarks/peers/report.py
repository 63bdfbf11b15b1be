"""What the benchmarks say about where they ran, and how they print and write what they found."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rounds = Sequence[Mapping[str, float]]


def machine() -> dict[str, Any]:
    """Machine, versions and commit."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    cores = len(os.sched_getaffinity(0))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    return {
        "machine": f"{platform.platform()}, {cpu.partition(':')[2].strip()}, {cores} cores",
        "versions": {"python": platform.python_version(), **versions},
        "commit": git.stdout.strip() or "unknown",
    }


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The command line without its paths, which say nothing elsewhere."""
    return {name: value for name, value in vars(args).items() if not isinstance(value, Path)}


def median(rounds: Rounds, name: str) -> float:
    """Of one figure over the rounds."""
    return statistics.median(r[name] for r in rounds)


def spread(rounds: Rounds, name: str) -> str:
    """Median [smallest-largest] of one figure over the rounds."""
    values = [r[name] for r in rounds]
    return f"{statistics.median(values):.0f} [{min(values):.0f}-{max(values):.0f}]"


def key(*words: str) -> str:
    """A flat name for a figure."""
    return re.sub(r"\W+", "_", "_".join(words)).strip("_")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, all but the first and the last to the right."""
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())


def print_flat(gates: Mapping[str, bool], figures: Mapping[str, float]) -> None:
    """Gates that failed, and every figure."""
    failed = [name for name, held in gates.items() if not held]
    print(f"\n{len(gates) - len(failed)} of {len(gates)} gates held" + "".join(f"\n  not: {name}" for name in failed))
    print("\n".join(f"  {name}: {value:.4g}" for name, value in figures.items()))


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Everything that was measured."""
    file.write_text(json.dumps({**machine(), **values}, indent=1) + "\n")

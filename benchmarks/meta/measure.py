"""One hypergradient step by every engine and library: a process for each, in rounds, the order reversed in odd ones."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.meta.methods import METHODS
from benchmarks.meta.peers import PEERS, UPDATES
from benchmarks.meta.task import PARTS, Setting, new_task, reference

RUN = Path(__file__).with_name("run_one.py")
NAMES = (*METHODS, *PEERS)
EXACT = ("ours forward", "ours functional", "ours reverse", "ours unroll", "ours unroll 3 updates")
COSINE = 0.999  # of an exact engine with float64, at least
STANDARD = Setting()
PATIENCE = 900.0  # seconds for one process
HEADER = ("method", "part", "ms", "T0", "T0, CPU", "CPU/plain's", "MiB", "MiB/plain's", "cosine", "rel. error")
Row = dict[str, Any]


class AbsentError(Exception):
    """A method that cannot run; the message is why."""


def measure(
    methods: Sequence[str],
    parts: Sequence[str],
    rounds: int,
    threads: int,
    peer_python: Mapping[str, str],
    setting: Setting = STANDARD,
    pairs: int = 3,
) -> tuple[list[Row], dict[str, bool]]:
    """Rows of figures, or of the reason why there are none, by method and part; and the gates of the exact engines.

    `peer_python`: interpreters by the first word of a method's name. `pairs`: timed steps of every process, each beside
    a plain one. ValueError for unknown methods, parts or libraries.
    """
    for what, given, known in (("method", methods, NAMES), ("part", parts, PARTS), ("library", peer_python, _words())):
        if odd := sorted(set(given) - set(known)):
            raise ValueError(f"no {what} is called {odd[0]!r}; known: {', '.join(known)}")
    found: dict[tuple[str, str], list[Row]] = {(method, part): [] for part in parts for method in methods}
    reasons: dict[tuple[str, str], str] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder, "reference")
        steps = {UPDATES.get(method, 1) for method in methods}
        torch.save({count: reference(new_task(setting, "all"), count) for count in steps}, truth)
        for number in range(rounds):
            for key in list(found)[:: 1 if number % 2 == 0 else -1]:
                if key in reasons:
                    continue
                python = peer_python.get(key[0].split()[0], sys.executable)
                words = [*key, setting.to_json(), str(truth), str(threads), str(pairs)]
                try:
                    found[key].append(_run(python, words, threads))
                except AbsentError as error:
                    reasons[key] = str(error)
    rows = [_row(key, figures, reasons.get(key), found) for key, figures in found.items()]
    gates = {
        f"{row['method']}, {row['part']}: cosine >= {COSINE}": row.get("cosine", 0.0) >= COSINE
        for row in rows
        if row["method"] in EXACT
    }
    return rows, gates


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells under HEADER; a reason stands in the last column."""
    return [_cells(row) for row in rows]


def _words() -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in PEERS))


def _run(python: str, words: list[str], threads: int) -> Row:
    """What run_one.py says; AbsentError with the first line of its error otherwise."""
    count = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    env = {**os.environ, **count, "PYTHONWARNINGS": "ignore"}
    try:
        ended = subprocess.run(
            [python, str(RUN), *words], capture_output=True, text=True, env=env, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AbsentError(f"{type(error).__name__}: {error}") from error
    if ended.returncode != 0:
        raise AbsentError(reason(ended.stderr) or f"ended with code {ended.returncode}")
    figures: Row = json.loads(ended.stdout.splitlines()[-1])
    return figures


def reason(text: str) -> str:
    """The first line of the error that a traceback ends with, or the last line of all; "" for no text."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback")]
    after = [line for line in lines[starts[-1] + 1 :] if not line.startswith(" ")] if starts else lines[-1:]
    return after[0].strip() if after else ""


def _row(key: tuple[str, str], rounds: list[Row], why: str | None, found: Mapping[tuple[str, str], list[Row]]) -> Row:
    method, part = key
    row: Row = {"method": method, "part": part}
    if why is not None or not rounds:
        return row | {"reason": why or "no round was asked for"}
    clocks = [f"{name}_{clock}" for name in ("seconds", "plain_seconds", "t0") for clock in ("wall", "cpu")]
    row |= {name: statistics.median(figures[name] for figures in rounds) for name in [*clocks, "memory_mib"]}
    if base := found.get(("plain", part)):  # in its own process, where no other method's memory slows it down
        for name in ("memory_mib", "seconds_wall", "seconds_cpu"):
            row[f"{name}_over_plain"] = row[name] / statistics.median(figures[name] for figures in base)
    if groups := rounds[0].get("agreement"):
        row |= {"agreement": groups, "cosine": min(group["cosine"] for group in groups.values())}
        row["relative_error"] = max(group["relative_error"] for group in groups.values())
    return row | {name: rounds[0][name] for name in ("torch", "version") if name in rounds[0]} | {"rounds": rounds}


def _cells(row: Row) -> tuple[str, ...]:
    if "reason" in row:
        return (row["method"], row["part"], *[""] * (len(HEADER) - 3), row["reason"])
    forms = {
        "t0_wall": ".2f",
        "t0_cpu": ".2f",
        "seconds_cpu_over_plain": ".2f",
        "memory_mib": ".0f",
        "memory_mib_over_plain": ".2f",
        "cosine": ".6f",
        "relative_error": ".1e",
    }
    values = [f"{row[name]:{form}}" if name in row else "" for name, form in forms.items()]
    return (row["method"], row["part"], f"{1000 * row['seconds_wall']:.0f}", *values)

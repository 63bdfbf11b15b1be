"""Compares two runs bit by bit: whether a change of the code changed what a recipe trains.

    fastaug same-run runs/before runs/after

Compared are the lines of metrics.jsonl without their times, the ids of every update (run.log_ids=true), samples.csv,
and the weights of the last checkpoint. Exit codes: 0 everything is equal, 1 something differs: the first difference of
each file is named; 2 not two run folders.
"""

import argparse
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

TIMES = (
    "images_per_second",
    "wait_share",
    "epoch_seconds",
    "peak_memory_mib",
    "peak_cuda_mib",
)  # keys of metrics.jsonl that no two runs share


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug same-run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder, say of the commit before")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="run folder of the same recipe")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="KEY", help="keys of metrics.jsonl that are new")
    args = parser.parse_args(argv)
    for run in (args.run_a, args.run_b):
        if not (run / "metrics.jsonl").is_file():
            parser.error(f"{run} is not a run folder: it has no metrics.jsonl")
    return args


def names(run: Path) -> set[str]:
    """The files of a run that are compared, by their names below it; those of the last checkpoint below `last`."""
    found = {"metrics.jsonl", *(file.name for file in run.glob("ids-*.jsonl"))}
    found |= {"samples.csv"} if (run / "samples.csv").exists() else set()
    return found | {f"last/{file.name}" for file in last_checkpoint(run).glob("*.safetensors")}


def last_checkpoint(run: Path) -> Path:
    """The folder that the pointer `last` names; where there is none, one that does not exist."""
    pointer = run / "checkpoints" / "last"
    return pointer.with_name(pointer.read_text().strip()) if pointer.is_file() else pointer


def difference(name: str, run_a: Path, run_b: Path, ignored: frozenset[str]) -> str | None:
    """The first difference in one file, or None."""
    for run, other in ((run_a, run_b), (run_b, run_a)):
        if name not in names(run):
            return f"only in {other}"
    if name.startswith("last/"):
        return weights_difference(*(last_checkpoint(run) / name.removeprefix("last/") for run in (run_a, run_b)))
    lines_a, lines_b = ((run / name).read_text().splitlines() for run in (run_a, run_b))
    return lines_difference(lines_a, lines_b, ignored)


def lines_difference(lines_a: list[str], lines_b: list[str], ignored: frozenset[str]) -> str | None:
    """The first line that differs, of JSON the first key; None where all are equal."""
    for number, (a, b) in enumerate(zip_longest(lines_a, lines_b), start=1):
        if a == b:
            continue
        if a is None or b is None:
            return f"{len(lines_a)} against {len(lines_b)} lines, equal as far as both go"
        if not a.startswith("{"):
            return f"line {number}: {a} against {b}"
        # Compared as text: NaN is equal to itself, and numbers are written with all their bits.
        one, two = ({k: json.dumps(v) for k, v in json.loads(line).items() if k not in ignored} for line in (a, b))
        for key in [*one, *(key for key in two if key not in one)]:
            if one.get(key) != two.get(key):
                place = f"line {number} (step {one.get('step')})"
                return f"{place}, {key}: {one.get(key, 'not there')} against {two.get(key, 'not there')}"
    return None


def weights_difference(file_a: Path, file_b: Path) -> str | None:
    """The first tensor whose name, type, shape or bits differ, and by how much."""
    if file_a.read_bytes() == file_b.read_bytes():
        return None
    import torch
    from safetensors.torch import load_file

    a, b = load_file(file_a), load_file(file_b)
    if odd := sorted(a.keys() ^ b.keys()):
        return f"{odd[0]} only in {file_a if odd[0] in a else file_b}"
    for name, one in a.items():
        two: Any = b[name]
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return f"{name}: {one.dtype} {list(one.shape)} against {two.dtype} {list(two.shape)}"
        if not torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, two))):
            return f"{name} differs by up to {(one.double() - two.double()).nan_to_num(0).abs().max().item():.3g}"
    return None


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    args = parse(argv)
    found = {
        name: difference(name, args.run_a, args.run_b, frozenset({*TIMES, *args.ignore}))
        for name in sorted(names(args.run_a) | names(args.run_b))
    }
    for name, what in found.items():
        print(f"{name}: {what or 'equal'}")
    return 1 if any(found.values()) else 0

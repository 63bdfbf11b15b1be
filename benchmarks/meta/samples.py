"""A loss weight for every sample at every step: its price, its memory, and how well it finds wrong labels."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import child
from benchmarks.meta.overhead import ratios, rows, sample_arms, timed_blocks
from benchmarks.meta.scene import Size, new_scene
from benchmarks.peers import report

EXACT, CHEAP = "fused, v every 5", "fused on layer4 and fc, v every 10"
NOISY = ["--noise", "0.4", "--kind", "uniform"]
SHORT = ["train.epochs=2", "eval.every=0", "run.log_every=1000"]  # long training finds more, cheap or not


def section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """Prints and keeps all three."""
    with new_scene(size) as scene:
        blocks = timed_blocks(scene, sample_arms(), block=10, rounds=args.rounds, warm=2)
    cost = ratios(blocks, "plain")
    report.print_table("a loss weight for every sample", ("arm", "ms/step", "of plain", "of plain, CPU"), rows(blocks))
    peaks = {name: peak_memory(name, size, args.threads) for name in ("plain", EXACT, CHEAP)}
    areas = {name: auroc(sample_arms()[name], args.seeds) for name in (EXACT, CHEAP)}
    table = [(name, f"{peaks[name]:.0f}", " ".join(f"{a:.3f}" for a in areas.get(name, [])) or "-") for name in peaks]
    report.print_table("memory and quality", ("arm", "peak MiB", "AUROC of wrong labels by seed"), table)
    gap = statistics.mean(areas[EXACT]) - statistics.mean(areas[CHEAP])
    found["samples"] = {"blocks": blocks, "peak_mib": peaks, "auroc": areas}
    found["figures"] |= {
        "per_sample_exact_cost": cost[EXACT],
        "per_sample_cost": cost[CHEAP],
        "per_sample_memory": peaks[CHEAP] / peaks["plain"],
        "per_sample_exact_memory": peaks[EXACT] / peaks["plain"],
        "per_sample_auroc_exact": statistics.mean(areas[EXACT]),
        "per_sample_auroc_gap": gap,
    }


def peak_memory(arm: str, size: Size, threads: int) -> float:
    """Peak resident MiB of a process of its own that trains 12 steps."""
    command = child.command("benchmarks.meta.samples", arm, json.dumps(asdict(size)), str(threads))
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=child.environment())
    return float(done.stdout.strip().splitlines()[-1])


def auroc(overrides: Sequence[str], seeds: int) -> list[float]:
    """Of the weights learned in a short training on MNIST-5k with 40 % of wrong labels, by seed."""
    recipe, train = str(child.ROOT / "recipes/mnist5k_weights.yaml"), str(child.ROOT / "fastaug/train.py")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "noise/labels.tsv"
        make = [sys.executable, str(child.ROOT / "tools/distort.py"), recipe, *NOISY, "--out", str(labels.parent)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for seed in range(seeds):
            run = Path(folder) / str(seed)
            keys = [f"data.labels={labels}", f"run.dir={run}", f"run.seed={seed}", *SHORT, *overrides]
            subprocess.run([sys.executable, train, recipe, *keys], check=True, stdout=subprocess.DEVNULL)
            found.append(json.loads((run / "result.json").read_text())["samples"]["weight_auroc"])
    return found


def main() -> None:
    """One arm's peak memory, for `peak_memory`."""
    import torch

    from benchmarks.meta.scene import Steps
    from benchmarks.peers.process_tree import memory_mib

    arm, size, threads = sys.argv[1], Size(**json.loads(sys.argv[2])), int(sys.argv[3])
    torch.set_num_threads(threads)
    with new_scene(size) as scene:
        Steps(scene.trainer(*sample_arms()[arm]))(12)
    print(memory_mib("VmHWM"))


if __name__ == "__main__":
    main()

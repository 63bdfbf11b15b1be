"""How far the label report can be trusted: runs with a known number of wrong labels, reported, against the truth.

    OMP_NUM_THREADS=1 python docs/studies/label_report_calibration.py --out runs/calibration --jobs 2

For each seed and kind of noise: draws wrong labels of MNIST-5k, trains the small network of noisy_mnist5k.yaml with
planted flips, makes the report, and asks whether its intervals hold what the truth says. With --twice a second training
draws its flips from the confusion of the first (run.plant_like), and its report counts too. The same command goes on
after a kill; --collect only reads what is there. calibration.json holds every run.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "docs/studies/noisy_mnist5k.yaml"
NOISE = {
    "uniform-0.02": ("uniform", 0.02),
    "uniform-0.1": ("uniform", 0.1),
    "uniform-0.4": ("uniform", 0.4),
    "pairwise-0.1": ("pairwise", 0.1),
    "pairwise-0.3": ("pairwise", 0.3),
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="for every training")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="holds the runs and calibration.json")
    parser.add_argument("--noise", nargs="+", default=list(NOISE), choices=NOISE, help="default all five")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], metavar="N", help="default 0 1 2 3")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="of a training (default 20)")
    parser.add_argument("--plant", type=float, default=0.01, metavar="SHARE", help="run.plant (default 0.01)")
    parser.add_argument("--twice", action="store_true", help="a second training with flips as the first one confuses")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    return parser.parse_intermixed_args()


def call(*words: object) -> None:
    """A command of this repository; its output only where it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {done.returncode}\n{done.stdout}{done.stderr}")


def one(arguments: argparse.Namespace, noise: str, seed: int) -> list[dict[str, Any]]:
    """What the reports of one data set say of it and the truth of them."""
    folder: Path = arguments.out.resolve() / f"{noise}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (kind, share), labels, truth = NOISE[noise], folder / "drawn/labels.tsv", folder / "truth.tsv"
    truth.write_text("")  # the folders of the images are right
    if not arguments.collect:
        call("tools/distort.py", RECIPE, "--noise", share, "--kind", kind, "--seed", seed, "--out", labels.parent)
    first, second = folder / "once", folder / "twice"
    found = []
    for run, like in [(first, None), (second, first)][: 1 + arguments.twice]:
        settings = [f"data.labels={labels}", f"run.plant={arguments.plant}", f"run.seed={seed}", f"run.dir={run}"]
        settings += [f"train.epochs={arguments.epochs}", "data.threads=1", *arguments.overrides]
        settings += [] if like is None else [f"run.plant_like={like}"]
        if not arguments.collect and not (run / "samples.npz").exists():
            call("fastaug/train.py", RECIPE, *settings)
        if not (run / "samples.npz").exists():
            continue
        call("tools/label_report.py", run, "--pictures", 0, "--truth", truth, "--json", run / "report.json")
        report = json.loads((run / "report.json").read_text())
        aurocs = json.loads((run / "result.json").read_text())["samples"]
        found.append({"noise": noise, "seed": seed, "planted": run.name, **report, "statistics": aurocs})
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """In how many runs the number is within 25 %, and the intervals hold."""
    told = [run["truth"] for run in runs if "wrong_error" in run["truth"]]
    return {
        "runs": len(told),
        "number_within_25_percent": sum(abs(truth["wrong_error"]) <= 0.25 for truth in told),
        "number_in_interval": sum(truth["wrong_in_interval"] for truth in told),
        "precision_in_interval_at_the_number": sum(truth["first"][-1]["in_interval"] for truth in told),
        "precision_in_interval_at_half_of_it": sum(truth["first"][0]["in_interval"] for truth in told),
        "precision_in_interval_from_half_to_all_of_it": sum(sum(f["in_interval"] for f in t["first"]) for t in told),
        "lengths_from_half_to_all_of_it": sum(len(truth["first"]) for truth in told),
    }


def main() -> None:
    """Runs everything and writes calibration.json."""
    arguments = parse()
    cases = [(noise, seed) for seed in arguments.seeds for noise in arguments.noise]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [run for found in pool.map(lambda case: one(arguments, *case), cases) for run in found]
    names = sorted({run["planted"] for run in runs})
    sums = {name: summary([run for run in runs if run["planted"] == name]) for name in names}
    result = {"epochs": arguments.epochs, "plant": arguments.plant, "summary": sums, "runs": runs}
    (arguments.out / "calibration.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(sums, indent=2))


if __name__ == "__main__":
    main()

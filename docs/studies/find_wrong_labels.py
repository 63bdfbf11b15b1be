"""Who finds wrong labels best: the statistics of one training, beside cleanlab with K-fold predictions.

    python docs/studies/find_wrong_labels.py --cleanlab-python PYTHON --json docs/studies/find_wrong_labels.json

For every kind of noise and seed: wrong labels are drawn (tools/distort.py) on docs/studies/noisy_mnist5k.yaml; one
training on these images, and one with augment.trust, leave their statistics in samples.npz; five trainings of the same
network, each without a fifth of the images, predict that fifth, and cleanlab
scores labels by these predictions. PYTHON is one that can import cleanlab (pip install cleanlab, in an environment of
its own). For each score: the area under the ROC curve, and the share of wrong labels missed when exactly as many images
are flagged as are wrong. Seconds are processor time of the trainings. Finished trainings are not repeated.
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import argparse
import json
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import binary_auroc

from fastaug.augment.pipeline import BatchAugment
from fastaug.data.sampler import evaluation_requests
from fastaug.evaluation.label_scores import label_scores
from fastaug.evaluation.sample_file import read_samples
from fastaug.training.build_data import evaluation_loader
from fastaug.training.evaluate_run import Wanted, checkpoint_and_recipe, restored

REPO = Path(__file__).resolve().parent.parent.parent
RECIPE = REPO / "docs/studies/noisy_mnist5k.yaml"
FOLDS = 5
NOISES = {
    "uniform 40 %": ["--noise", "0.4"],
    "pairwise 10 %": ["--noise", "0.1", "--kind", "pairwise"],
    "pairwise 30 %": ["--noise", "0.3", "--kind", "pairwise"],
    "confused 10 %": ["--noise", "0.1", "--kind", "confusion", "--confusion", "{clean}"],
}
SCORES = """
import sys, numpy as np
from cleanlab.rank import get_label_quality_scores as score
with np.load(sys.argv[1]) as given:
    labels, predicted = given["labels"], given["predicted"]
kinds = "self_confidence", "normalized_margin", "confidence_weighted_entropy"
np.savez(sys.argv[2], **{kind: score(labels, predicted, method=kind) for kind in kinds})
"""

Floats = npt.NDArray[np.float64]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleanlab-python", required=True, metavar="PYTHON", help="one that can import cleanlab")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES), metavar="NOISE")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/find_wrong_labels"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    return parser.parse_args()


def trained(folder: Path, overrides: list[str]) -> float:
    """Trains a run, unless it has ended before; its processor seconds."""
    note = folder / "processor_seconds.txt"
    if not note.exists():
        command = [sys.executable, str(REPO / "fastaug/train.py"), str(RECIPE), f"run.dir={folder}", *overrides]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        note.write_text(str(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return float(note.read_text())


@torch.no_grad()
def predictions(run: Path) -> tuple[list[str], Floats]:
    """Paths [N] and class probabilities [N, C] of a run's test split by its last network."""
    path, recipe = checkpoint_and_recipe(Wanted(run, tta=0))
    found = restored(path, recipe)
    ids = found.parts.splits.test
    loader = evaluation_loader(recipe, found.accelerator, found.parts, ids)
    augment, rows = BatchAugment(recipe, len(found.parts.classes)), []
    found.network.eval()
    for batch in loader.batches(evaluation_requests(ids, recipe.eval.batch_size, 1, 0)):
        rows.append(found.network(augment.evaluation(batch)).double().softmax(1).numpy())
    return list(map(str, ids)), np.concatenate(rows)


class Drawn(NamedTuple):
    """One distortion: the images that are trained on, by id, and the class of each, given and true."""

    folder: Path
    members: list[str]
    given: dict[str, str]
    true: dict[str, str]

    def wrong(self, ids: list[str]) -> npt.NDArray[np.bool_]:
        """Which labels of `ids` are wrong."""
        return np.array([self.given[i] != self.true[i] for i in ids])

    def settings(self, lists: Path, members: list[str]) -> list[str]:
        """Overrides for training on `members`, with their given labels, by the split lists in a folder."""
        changed = [i for i in members if self.given[i] != self.true[i]]
        (lists / "labels.tsv").write_text("".join(f"{i}\t{self.given[i]}\n" for i in changed))
        fractions = [f"data.{split}_fraction=0" for split in ("meta", "select", "test")]
        return [f"data.labels={lists}/labels.tsv", f"data.splits={lists}", *fractions]


def drawn(folder: Path, seed: int, words: list[str]) -> Drawn:
    """Draws the wrong labels of one kind and seed."""
    command = [sys.executable, str(REPO / "tools/distort.py"), str(RECIPE), "data.select_fraction=0"]
    subprocess.run([*command, f"data.split_seed={seed}", *words, "--seed", str(seed), "--out", str(folder)], check=True)
    true, changed = (
        dict(line.split("\t") for line in (folder / f"{name}.tsv").read_text().splitlines())
        for name in ("truth", "labels")
    )
    return Drawn(folder, list(true), true | changed, true)


def by_folds(work: Path, data: Drawn, common: list[str], seed: int, python: str) -> tuple[list[str], Any, float]:
    """Ids, cleanlab's scores of them by name from predictions of held-out folds, and processor seconds."""
    members, seconds, pieces = list(data.members), 0.0, []
    np.random.default_rng(seed).shuffle(members)
    for fold in range(FOLDS):
        lists, held_out = work / f"lists-{fold}", set(members[fold::FOLDS])
        lists.mkdir(parents=True, exist_ok=True)
        kept = [i for i in members if i not in held_out]
        for name, ids in {"train": kept, "meta": [], "select": [], "test": held_out}.items():
            (lists / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
        seconds += trained(work / f"fold-{fold}", [*common, *data.settings(lists, kept)])
        pieces.append(predictions(work / f"fold-{fold}"))
    tested, predicted = [i for ids, _ in pieces for i in ids], np.concatenate([rows for _, rows in pieces])
    names = sorted(set(data.true.values()))  # of one digit each: the order of the outputs
    labels = np.array([names.index(data.given[i]) for i in tested])
    np.savez(work / "predicted.npz", labels=labels, predicted=predicted)
    subprocess.run([python, "-c", SCORES, str(work / "predicted.npz"), str(work / "scores.npz")], check=True)
    with np.load(work / "scores.npz") as scores:
        return tested, dict(scores), seconds


def judged(score: Floats, wrong: npt.NDArray[np.bool_]) -> dict[str, float]:
    """How well low scores tell the wrong ones: AUROC, and the share of them missed when as many are flagged."""
    score = np.nan_to_num(score, nan=np.inf)
    ranks = np.unique(score, return_inverse=True)[1].astype(np.float64)
    auroc = binary_auroc(torch.from_numpy(1 - ranks / max(ranks.max(), 1)), torch.from_numpy(wrong).long())
    flagged = np.argsort(score, kind="stable")[: int(wrong.sum())]
    return {"auroc": float(auroc), "missed": float(1 - wrong[flagged].mean())}


def compared(work: Path, words: list[str], seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of every score for one kind of noise and seed."""
    data = drawn(work / "drawn", seed, words)
    common = [f"run.seed={seed}", f"train.epochs={arguments.epochs}", "data.threads=1"]
    whole = [*common, *data.settings(data.folder / "splits", data.members)]
    for name, more in {"one training": [], "one training, trust": ["augment.trust=4"]}.items():
        run = work / name.replace(", ", "_").replace(" ", "_")
        seconds = trained(run, [*whole, *more])
        samples = read_samples(run).of("train")
        scores = {"label score": label_scores(samples), "probability": samples["probability"]}
        scores |= {"margin": samples["margin"], "cross-entropy": -samples["cross_entropy"]}
        for score, values in scores.items():
            found = judged(values.astype(np.float64), data.wrong(list(map(str, samples["id"]))))
            yield {"by": name, "score": score, "seconds": seconds, **found}
    ids, scores, seconds = by_folds(work, data, common, seed, arguments.cleanlab_python)
    for score, values in scores.items():
        yield {"by": f"cleanlab, {FOLDS} folds", "score": score, "seconds": seconds, **judged(values, data.wrong(ids))}


def main() -> int:
    """The exit code."""
    arguments, rows = parse(), []
    for seed in arguments.seeds:
        clean = (arguments.runs / f"clean-{seed}").absolute()
        trained(clean, [f"run.seed={seed}", f"data.split_seed={seed}", f"train.epochs={arguments.epochs}"])
        for kind in arguments.noises:
            work = (arguments.runs / f"{kind.replace(' %', '').replace(' ', '_')}-{seed}").absolute()
            for row in compared(work, [word.format(clean=clean) for word in NOISES[kind]], seed, arguments):
                rows.append({"noise": kind, "seed": seed, **row})
                print(json.dumps(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

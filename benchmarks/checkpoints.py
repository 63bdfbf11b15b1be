"""How long training stands still for a checkpoint: one that it waits for, beside run.checkpoint_async, taking turns.

    python -m benchmarks.checkpoints --rounds 7

One process trains a network on random images; every round saves once each way. Medians, in wall seconds and in those
of the training thread on a processor: the time inside `save`, which for an asynchronous checkpoint is a copy to host
memory; until it is written; an update while nothing and while a checkpoint is written, which share cores and memory.
The aim: an asynchronous save takes less than 5 % of the time of the other. The first copy, which has to get its memory,
is told apart.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

AIM = 0.05  # of the time that the other kind of save takes
RECIPE = """
data: {loader: synthetic, img_size: 64, synthetic_classes: 1000, synthetic_images: 100000}
model: {name: resnet50}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 4}
run: {keep: 1, sample_record: false}
"""
TOLD = {
    "waiting": "a save that training waits for",
    "asynchronous": "an asynchronous save: training stands still",
    "first": "the first of them",
    "idle": "an update",
    "beside": "an update behind an asynchronous save",
    "rest": "until its checkpoint is written behind that update",
}


def assembled(folder: Path, words: list[str]) -> Any:
    """The trainer of the benchmark's recipe, changed by `words`."""
    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.recipe.reading import read_recipe
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = read_recipe(folder / "recipe.yaml", words)
    return assemble(recipe, build_accelerator(recipe), RunFolder(folder / "run"), Console(False))


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of `work()`, with all that it has left to a GPU: on the wall, and of this thread on a processor."""
    import torch

    begun, worked = time.perf_counter(), time.thread_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun, time.thread_time() - worked


def measure(folder: Path, rounds: int, words: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every save and update by kind, of all rounds but the first, of which "first copy" tells."""
    from fastaug.training.checkpoint_writer import CheckpointWriter
    from fastaug.training.loop import train_step
    from fastaug.training.trainer_state import save

    trainer = assembled(folder, words)
    batches = trainer.loader.batches(trainer.order.requests(0, trainer.last_step))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in TOLD}
    with CheckpointWriter(asynchronous=False) as waiting, CheckpointWriter(asynchronous=True) as asynchronous:
        for _ in range(rounds + 1):
            found["idle"] += [seconds(lambda: train_step(trainer, batches)) for _ in range(2)]
            trainer.writer = waiting
            found["waiting"].append(seconds(lambda: save(trainer)))
            found["idle"] += [seconds(lambda: train_step(trainer, batches)) for _ in range(2)]
            trainer.writer = asynchronous
            found["asynchronous"].append(seconds(lambda: save(trainer)))
            found["beside"].append(seconds(lambda: train_step(trainer, batches)))
            found["rest"].append(seconds(asynchronous.finish))
    kept = {name: values[len(values) // (rounds + 1) :] for name, values in found.items()}
    return kept | {"first": found["asynchronous"][:1]}


def summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Medians, the share of the aim, and whether it is met."""
    medians = {name: [statistics.median(kind) for kind in zip(*values, strict=True)] for name, values in found.items()}
    share, worked = (a / w for a, w in zip(medians["asynchronous"], medians["waiting"], strict=True))
    figures = {**medians, "share": share, "share of processor time": worked}
    return {"gates": {f"stands still < {AIM:.0%}": share < AIM}, "figures": figures}


def show(found: dict[str, list[tuple[float, float]]], result: dict[str, Any]) -> None:
    """The table and the gate."""
    figures = result["figures"]
    print("seconds, median (range), and of the training thread on a processor")
    for name, text in TOLD.items():
        wall, (median, worked) = [pair[0] for pair in found[name]], figures[name]
        print(f"{median:8.3f} ({min(wall):.3f} to {max(wall):.3f}) {worked:8.3f}  {text}")
    share, worked = figures["share"], figures["share of processor time"]
    print(f"an asynchronous save takes {share:.1%} of the time of the other, {worked:.1%} of its processor time")
    for name, passed in result["gates"].items():
        print(f"{'ok' if passed else 'MISSED'}: {name}")


def main() -> int:
    """0 when the aim is met, 1 when it is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="keys of the recipe: model.name=vit_base_patch16_224"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="where checkpoints are written (default: temporary)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds needs at least 1")
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measure(Path(folder), args.rounds, args.words)
    result = summary(found)
    show(found, result)
    if args.json:
        args.json.write_text(json.dumps({"seconds": found, **result}, indent=1) + "\n")
    return 0 if all(result["gates"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())

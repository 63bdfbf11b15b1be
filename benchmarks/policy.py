"""What a fixed augmentation policy costs the training thread, and what share of the speed without it is left.

The same training with and without the policy (augment.aa), in one process, taking turns. Blocked is the time of a step
in which the training thread waits for its batch or augments it, more than without the policy, per image. With
--hold-ms a stand-in for an accelerator takes the place of the network: it holds every batch for that long without
using the CPU.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastaug.training.build import Trainer

BLOCKED, SHARE = 0.1, 0.9  # at most, ms an image; at least, where the network is the limit
RECIPE = """
data: {threads: 2, test_fraction: 0.1}
optim: {opt: sgd, lr: 0.01}
train: {epochs: 1000}
"""
Rounds = list[dict[str, Any]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="ta_wide", metavar="NAME", help="as augment.aa (default ta_wide)")
    parser.add_argument("--model", default="resnet18", metavar="NAME", help="timm's name (default resnet18)")
    parser.add_argument("--side", type=int, default=224, help="pixels (default 224)")
    parser.add_argument("--batch", type=int, default=32, help="images (default 32)")
    parser.add_argument("--threads", type=int, default=2, help="of the loader and of torch (default 2)")
    parser.add_argument("--loader", default="dali", choices=("dali", "resident", "synthetic"), help="default dali")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="JPEG files made for it (default 512)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a turn (default 8)")
    parser.add_argument("--hold-ms", type=float, metavar="T", help="a stand-in for an accelerator, no network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if min(args.side, args.batch, args.threads, args.rounds, args.steps) < 1 or args.images * 0.9 < args.batch:
        parser.error("all numbers must be at least 1, and --images a tenth more than --batch")
    return args


def build(args: argparse.Namespace, folder: Path) -> "dict[str, Trainer]":
    """A trainer without the policy and one with it, on the same files."""
    import torch

    from benchmarks.photo_folder import make_photo_folder
    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.recipe.reading import read_recipe
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    torch.set_num_threads(args.threads)
    (folder / "recipe.yaml").write_text(RECIPE)
    keys = [f"data.root={make_photo_folder(folder / 'photos', args.images, 8)}", f"run.dir={folder / 'run'}"]
    keys += [f"data.img_size={args.side}", f"data.loader={args.loader}", f"data.threads={args.threads}"]
    keys += [f"train.batch_size={args.batch}", f"model.name={args.model}", "data.synthetic_classes=8"]
    keys += [f"data.crop={'center' if args.loader == 'resident' else 'rrc'}"]
    found = {}
    for name, more in (("plain", []), ("policy", [f"augment.aa={args.policy}"])):
        recipe = read_recipe(folder / "recipe.yaml", keys + more)
        found[name] = assemble(recipe, build_accelerator(recipe), RunFolder(folder / "run"), Console(False))
    return found


def trained(trainer: "Trainer", steps: int) -> dict[str, float]:
    """A turn of real training steps: images per second, and ms an image in which the training thread was blocked."""
    from fastaug.step_profile.measure import together

    found, _ = together(trainer, steps)
    return in_the_middle(trainer, [step["step"] for step in found], [step["load"] + step["augment"] for step in found])


def held(trainer: "Trainer", steps: int, hold: float) -> dict[str, float]:
    """The same behind a stand-in that holds each batch for `hold` seconds."""
    from fastaug.step_profile.measure import WARM_UP, batches_for

    whole, blocked = [], []
    batches = batches_for(trainer, WARM_UP + steps)
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        trainer.augment.training(next(batches), 0)
        blocked.append(time.perf_counter() - start)
        time.sleep(hold)
        whole.append(time.perf_counter() - start)
    return in_the_middle(trainer, whole[WARM_UP:], blocked[WARM_UP:])


def in_the_middle(trainer: "Trainer", whole: list[float], blocked: list[float]) -> dict[str, float]:
    """Medians over the steps of a turn, from seconds: other work on the machine shows in few of them."""
    images = trainer.order.batch_size
    return {
        "images_per_second": images / statistics.median(whole),
        "blocked_ms_per_image": 1000 * statistics.median(blocked) / images,
    }


def figures_of(rounds: Rounds) -> dict[str, float]:
    """Medians of both, and what is asked of them: differences and ratios of neighbouring turns."""
    turns = [[r for r in rounds if r["name"] == name] for name in ("plain", "policy")]
    found = {
        f"{own[0]['name']}_{key}": statistics.median(r[key] for r in own)
        for own in turns
        for key in ("images_per_second", "blocked_ms_per_image")
    }
    pairs = list(zip(*turns, strict=True))
    more = [policy["blocked_ms_per_image"] - plain["blocked_ms_per_image"] for plain, policy in pairs]
    shares = [policy["images_per_second"] / plain["images_per_second"] for plain, policy in pairs]
    return found | {
        "policy_blocked_ms_per_image": statistics.median(more),
        "policy_share_of_plain": statistics.median(shares),
    }


def gates_of(figures: dict[str, float]) -> dict[str, bool]:
    """Which targets are met."""
    return {
        f"policy_blocked_ms_per_image <= {BLOCKED}": figures["policy_blocked_ms_per_image"] <= BLOCKED,
        f"policy_share_of_plain >= {SHARE}": figures["policy_share_of_plain"] >= SHARE,
    }


def main() -> int:
    args = parse()
    rounds: Rounds = []
    with tempfile.TemporaryDirectory(prefix="fastaug-bench-") as folder:
        trainers = build(args, Path(folder))
        for turn in range(args.rounds):
            for name in ("plain", "policy") if turn % 2 == 0 else ("policy", "plain"):
                trainer = trainers[name]
                hold = args.hold_ms
                found = trained(trainer, args.steps) if hold is None else held(trainer, args.steps, hold / 1000)
                rounds.append({"name": name, "round": turn, **found})
                print(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    figures = figures_of(rounds)
    gates = gates_of(figures)
    print("\n".join(f"{key}: {value:.4g}" for key, value in figures.items()))
    print("\n".join(f"{'held' if met else 'NOT held'}: {gate}" for gate, met in gates.items()))
    if args.json is not None:
        from fastaug.provenance import commit, versions

        settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path)}
        where = {"machine": f"{platform.platform()}, {len(os.sched_getaffinity(0))} cores"}
        where |= {"versions": versions(), "commit": commit() or "unknown"}  # type: ignore[dict-item]
        written = {**where, "settings": settings, "rounds": rounds, "gates": gates, "figures": figures}
        args.json.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python3
"""Twenty updates of our training beside timm's train.py: losses, rates, weights and their average, side by side.

SCRIPT is timm's train.py (its repository has it, its package does not), run as it is with the installed timm. Every set
of arguments below is one that timm documents, at a small size: 100 images of 32 pixels, no augmentation, its smallest
network from the same weights. Ours is trained by the recipe that `fastaug from-timm` makes of the same arguments. timm
has no option for the order of images: its sampler is given the order that ours had. --control also trains timm beside
itself, from weights that differ in their last bit: what rounding in float32 makes of the loss. --json keeps figures.

    python docs/studies/timm_steps.py SCRIPT --control --json timm_steps.json
"""

import argparse
import csv
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.task import ClassificationTask
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]  # from a checkout that need not be installed

from fastaug.recipe.timm_script.command_line import read_command
from fastaug.recipe.timm_script.convert import converted
from fastaug.recipe.timm_script.recipe_text import recipe_text

NETWORK, CLASSES, TRAINED, HELD_OUT, SIDE, EPOCHS = "test_resnet", 5, 20, 2, 32, 4
# What timm's documented commands and published procedures train with, schedules at 20 updates, rates for 20 images:
# at a rate ten times as high the rounding of float32 grows a thousandfold in a few updates.
SETS = {
    "seresnext26t": "-b 20 --lr-base 0.1 --lr-base-size 224 --warmup-epochs 1 --weight-decay 1e-4 --sched cosine",
    "efficientnet_b2": (
        "-b 20 --sched step --decay-epochs 1.4 --decay-rate .97 --opt rmsproptf --opt-eps .001 --warmup-epochs 1 "
        "--warmup-lr 1e-6 --weight-decay 1e-5 --model-ema --model-ema-decay 0.99 --lr .00125"
    ),
    "a2": (
        "-b 20 --opt lamb --lr 5e-3 --weight-decay 0.02 --sched cosine --warmup-epochs 1 --warmup-lr 1e-6 "
        "--min-lr 1e-6 --cooldown-epochs 1 --bce-loss --bce-target-thresh 0.2 --smoothing 0.1"
    ),
    "convnext_like": (
        "-b 10 --grad-accum-steps 2 --opt adamw --lr-base 1e-3 --opt-betas 0.9 0.99 --weight-decay 0.05 "
        "--layer-decay 0.8 --clip-grad 0.05 --sched cosine --sched-on-updates --warmup-epochs 1 --warmup-prefix "
        "--model-ema --model-ema-decay 0.99 --model-ema-warmup"
    ),
}
SAME = (
    "--no-aug --crop-pct 1 --img-size {side} --mean 0.5 --std 0.25 --interpolation bilinear --device cpu -j 0 "
    "--initial-checkpoint {start} --model {network} --num-classes {classes} --epochs {epochs} "
    "--data-dir {data} --output {output} --experiment timm --log-interval 1"
)
Updates = list[dict[str, Any]]


def make_images(root: Path) -> None:
    """PNG files of noise in a colour of each class."""
    draw = np.random.default_rng(0)
    for split, count in (("train", TRAINED), ("validation", HELD_OUT)):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            colour = draw.uniform(60, 190, 3)
            for number in range(count):
                pixels = draw.normal(colour, 60, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def make_weights(file: Path, nudge: float = 0.0) -> None:
    """A checkpoint in the form of timm's script, with initial weights, each up or down by a share `nudge`."""
    torch.manual_seed(0)
    state = timm.create_model(NETWORK, num_classes=CLASSES).state_dict()
    for value in (value for value in state.values() if value.is_floating_point()):
        value.mul_(1 + nudge * torch.randn(value.shape).sign())
    torch.save({"epoch": 0, "arch": NETWORK, "state_dict": state, "version": 2}, file)


def ours(words: str, folder: Path) -> tuple[Updates, list[list[str]], dict[str, dict[str, Tensor]]]:
    """Loss and rate of every update, paths of its images, and weights at the end, of the recipe made of `words`."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text(converted(read_command(words)), recipe.name))
    run = folder / "ours"
    keys = [f"run.dir={run}", "run.log_every=1", "run.log_ids=true", "run.log_losses=true", "run.sample_record=false"]
    command = [sys.executable, str(REPOSITORY / "fastaug" / "train.py"), str(recipe), *keys, "data.threads=1"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "1"}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"our training ended with {ended.returncode}: {ended.stderr[-2000:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [{"loss": line["loss"], "lr": line["lr"]} for line in lines if line["event"] == "train"]
    with open(run / "samples.csv") as file:
        paths = {int(row["id"]): row["path"] for row in csv.DictReader(file)}
    order = [[paths[i] for i in json.loads(line)["ids"]] for line in (run / "ids-0.jsonl").read_text().splitlines()]
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return updates, order, {file.stem: load_file(file) for file in sorted(last.glob("*.safetensors"))}


class GivenOrder:
    """A sampler of positions in timm's data set: an epoch of ours after the other."""

    def __init__(self, epochs: list[list[int]]) -> None:
        self._epochs = iter(epochs)
        self._length = len(epochs[0])

    def __iter__(self) -> Iterator[int]:
        return iter(next(self._epochs))

    def __len__(self) -> int:
        return self._length


def load_script(path: Path) -> ModuleType:
    """timm's train.py as a module of its own."""
    spec = importlib.util.spec_from_file_location("timm_train_script", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path}: no such file; give train.py of github.com/huggingface/pytorch-image-models")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(
    script: Path, words: str, order: list[list[str]], experiment: Path
) -> tuple[Updates, dict[str, dict[str, Tensor]]]:
    """The same of timm's script; `order`: the images of each update."""
    module = load_script(script)
    losses: list[float] = []
    rates: list[float] = []
    plain = module.create_loader

    def create_loader(dataset: Any, *given: Any, **named: Any) -> Any:
        """timm's loader; that of training images with the given order."""
        loader = plain(dataset, *given, **named)
        if named["is_training"]:
            places = {str(Path(path).resolve()): place for place, (path, _) in enumerate(dataset.reader.samples)}
            root = Path(dataset.reader.root).resolve()
            positions = [[places[str(root.parent / path)] for path in update] for update in order]
            each = len(dataset) // len(positions[0])
            epochs = [list(chain(*positions[i : i + each])) for i in range(0, len(positions), each)]
            loader.loader.batch_sampler.sampler = GivenOrder(epochs)
        return loader

    class Recorded(ClassificationTask):  # type: ignore[misc]
        """timm's task, with the loss of every micro-batch kept."""

        def forward(self, *given: Any) -> Any:
            result = super().forward(*given)
            losses.append(result["loss"].item())
            return result

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        scales = [group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        rates.append(scales[0])

    module.create_loader, module.ClassificationTask = create_loader, Recorded
    hook, words_before = register_optimizer_step_pre_hook(before_step), sys.argv
    sys.argv = ["train.py", *shlex.split(words)]
    try:
        module.main()
    finally:
        sys.argv = words_before
        hook.remove()
    parts = len(losses) // len(rates)
    means = [sum(losses[i : i + parts]) / parts for i in range(0, len(losses), parts)]
    with torch.serialization.safe_globals([argparse.Namespace]):  # of the script's arguments
        kept = torch.load(experiment / "last.pth.tar", map_location="cpu", weights_only=True)
    weights = {"model": kept["state_dict"], "ema": kept.get("state_dict_ema")}
    updates = [{"loss": loss, "lr": rate} for loss, rate in zip(means, rates, strict=True)]
    return updates, {name: state for name, state in weights.items() if state is not None}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two networks' weights and statistics."""
    if one.keys() != other.keys():
        raise SystemExit(f"names differ: {sorted(one.keys() ^ other.keys())[:4]}")
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def apart(one: Updates, other: Updates) -> float:
    """The largest difference of two trainings' losses."""
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True))


def compared(script: Path, name: str, folder: Path, control: bool) -> dict[str, Any]:
    """What both trainings did with the arguments of set `name`."""
    made_of = {"side": SIDE, "start": folder / "start.pth.tar", "network": NETWORK, "classes": CLASSES}
    made_of |= {"epochs": EPOCHS, "data": folder / "images", "output": folder / name}
    words = f"{SETS[name]} {SAME.format(**made_of)}"
    (folder / name).mkdir()
    own, order, own_weights = ours(words, folder / name)
    other, other_weights = theirs(script, words, order, folder / name / "timm")
    if len(own) != len(other):
        raise SystemExit(f"{name}: {len(own)} updates of ours, {len(other)} of timm's")
    again = words.replace("--experiment timm", "--experiment nudged").replace("start.pth", "nudged.pth")
    nudged = theirs(script, again, order, folder / name / "nudged")[0] if control else None
    return {
        "arguments": SETS[name],
        "updates": len(own),
        "ours": own,
        "timm": other,
        "loss": apart(own, other),
        "control": None if nudged is None else apart(nudged, other),
        "lr": max(abs(a["lr"] - b["lr"]) / max(b["lr"], 1e-12) for a, b in zip(own, other, strict=True)),
        "weights": furthest(own_weights["model"], other_weights["model"]),
        "ema": furthest(own_weights["ema"], other_weights["ema"]) if "ema" in other_weights else None,
    }


def tell(found: dict[str, dict[str, Any]]) -> None:
    """Prints a line for each set of arguments."""
    print(f"timm {timm.__version__}, torch {torch.__version__}; largest differences between ours and timm's")
    heads = ("loss", "rate", "weights", "average", "control")
    print(f"{'arguments':16} {'updates':>7} {'first':>7} {'last':>7} " + " ".join(f"{head:>8}" for head in heads))
    for name, each in found.items():
        values = (each[key] for key in ("loss", "lr", "weights", "ema", "control"))
        shown = " ".join(f"{'-' if value is None else f'{value:.1e}':>8}" for value in values)
        first, last = each["timm"][0]["loss"], each["timm"][-1]["loss"]
        print(f"{name:16} {each['updates']:7} {first:7.4f} {last:7.4f} {shown}")


def main(argv: list[str] | None = None) -> int:
    """Compares, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="timm's train.py")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="which arguments")
    parser.add_argument("--control", action="store_true", help="timm beside itself too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_images(folder / "images")
        make_weights(folder / "start.pth.tar")
        make_weights(folder / "nudged.pth.tar", nudge=2**-23)
        found = {name: compared(arguments.script, name, folder, arguments.control) for name in arguments.sets}
    tell(found)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

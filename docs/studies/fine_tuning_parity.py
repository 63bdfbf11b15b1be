#!/usr/bin/env python3
"""Fine-tuning beside a plain timm loop: the same initial weights, images, rate and epochs, several seeds.

ROOT is a folder with train/ and test/; WEIGHTS a timm state dict of MODEL, its classifier included or not: both get the
same new classifier, drawn for the seed. The loop is what timm's documentation shows: create_transform, a shuffled
DataLoader, create_optimizer_v2, CosineLRScheduler by updates. Prints a line for each training and the paired
difference; --json keeps every figure. Nothing is downloaded. Runs that are there already are not trained again.

    python docs/studies/fine_tuning_parity.py ROOT WEIGHTS --model tf_efficientnet_lite0 --side 96 --json parity.json
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm import create_model
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = """
data: {{root: '{root}', img_size: {side}, interpolation: bicubic, mean: {mean}, std: {std}, threads: 1}}
model: {{name: {model}, initial_checkpoint: '{start}'}}
optim: {{opt: adamw, lr: {lr}, weight_decay: {decay}, min_lr: 0}}
train: {{epochs: {epochs}, batch_size: {batch}, drop_last: {drop_last}}}
eval: {{every: 0}}
"""


def initial(arguments: argparse.Namespace, classes: int, seed: int, folder: Path) -> Path:
    """A state dict with the given weights and a new classifier."""
    torch.manual_seed(seed)
    network = create_model(arguments.model, num_classes=classes)
    given = torch.load(arguments.weights, map_location="cpu", weights_only=True)
    fresh = network.state_dict()
    fitting = {name: value for name, value in given.items() if name in fresh and fresh[name].shape == value.shape}
    print(f"{len(fitting)} of {len(fresh)} tensors from {arguments.weights}", file=sys.stderr)
    file = folder / f"start-{seed}.pth"
    torch.save(fresh | fitting, file)
    return file


def plain_loop(arguments: argparse.Namespace, start: Path, seed: int) -> float:
    """Top-1 on test after a plain timm loop."""
    torch.manual_seed(seed)
    look: dict[str, Any] = {"input_size": arguments.side, "interpolation": "bicubic"}
    look |= {"mean": arguments.mean, "std": arguments.std}
    trains = create_transform(is_training=True, color_jitter=None, **look)
    tests = create_transform(is_training=False, crop_pct=0.875, **look)
    train = ImageFolder(str(arguments.root / "train"), trains, loader=opened)
    test = ImageFolder(str(arguments.root / "test"), tests, loader=opened)
    network = create_model(arguments.model, num_classes=len(train.classes))
    network.load_state_dict(torch.load(start, weights_only=True))
    network = network.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=arguments.lr, weight_decay=arguments.decay)
    batches = DataLoader(train, arguments.batch, shuffle=True, drop_last=arguments.drop_last)
    schedule = CosineLRScheduler(optimizer, t_initial=arguments.epochs * len(batches), t_in_epochs=False)
    loss, update = nn.CrossEntropyLoss(), 0
    for _ in range(arguments.epochs):
        network.train()
        for images, labels in batches:
            schedule.step_update(update)
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()
            update += 1
    network.eval()
    right = 0
    with torch.no_grad():
        for images, labels in DataLoader(test, arguments.batch):
            right += int((network(images).argmax(1) == labels).sum())
    return right / len(test)


def opened(path: str) -> Image.Image:
    """An image as timm opens it."""
    return Image.open(path).convert("RGB")


def ours(arguments: argparse.Namespace, start: Path, seed: int, folder: Path) -> float:
    """Top-1 on test after our training, in a process of its own."""
    recipe, run = folder / f"recipe-{seed}.yaml", folder / f"ours-{seed}"
    recipe.write_text(RECIPE.format(start=start, **vars(arguments)))
    command = [sys.executable, str(REPOSITORY / "fastaug" / "train.py"), str(recipe)]
    subprocess.run([*command, f"run.dir={run}", f"run.seed={seed}", *arguments.overrides], check=True)
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return float(result["test"]["top1"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of our recipe")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--mean", type=float, nargs=3, default=[0.5, 0.5, 0.5])
    parser.add_argument("--std", type=float, nargs=3, default=[0.5, 0.5, 0.5])
    parser.add_argument("--drop-last", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/parity"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_intermixed_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    classes = len([folder for folder in (arguments.root / "train").iterdir() if folder.is_dir()])
    found: dict[str, list[float]] = {"ours": [], "timm": []}
    for seed in arguments.seeds:
        start = initial(arguments, classes, seed, arguments.runs)
        found["ours"].append(ours(arguments, start, seed, arguments.runs))
        found["timm"].append(plain_loop(arguments, start, seed))
        print(f"seed {seed}: ours {found['ours'][-1]:.4f}, timm {found['timm'][-1]:.4f}", flush=True)
    apart = [a - b for a, b in zip(found["ours"], found["timm"], strict=True)]
    for name, values in [*found.items(), ("ours - timm", apart)]:
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{name}: {statistics.mean(values):.4f} (sd {spread:.4f})")
    if arguments.json:
        about = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
        arguments.json.write_text(json.dumps({"settings": about, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

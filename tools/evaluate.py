"""Evaluates a run or one of its checkpoints; under torchrun with as many processes as wanted, with the same figures."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastaug.errors import RecipeError, StorageError
from fastaug.recipe.reading import read_recipe, read_stored
from fastaug.recipe.schema import Recipe
from tools.study import told

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from fastaug.data.build import DataParts
    from fastaug.meta.parameters import LearnedParts


MOST_RUNS = 100_000  # of --latency


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "path", type=Path, metavar="RUN|CHECKPOINT", help="run folder, or one of its checkpoints/step-*"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the run's recipe")
    parser.add_argument("--split", default="test", choices=("train", "meta", "select", "test"))
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: as the recipe's headline")
    parser.add_argument(
        "--tta", type=int, metavar="A", help="also average over A copies under the run's policy (eval.tta)"
    )
    parser.add_argument("--per-class", action="store_true", help="print precision, recall and F1 of every class too")
    parser.add_argument(
        "--latency",
        type=_runs,
        nargs="?",
        const=50,
        metavar="RUNS",
        help="time the network on one image alone too, the median of so many passes (default 50)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parser.parse_intermixed_args()


def _runs(text: str) -> int:
    """A number of passes; argparse tells a ValueError."""
    if not 1 <= int(text) <= MOST_RUNS:
        raise argparse.ArgumentTypeError(f"{text} is no number of passes from 1 to {MOST_RUNS}")
    return int(text)


def checkpoint_and_recipe(arguments: argparse.Namespace) -> tuple[Path, Recipe]:
    """The checkpoint folder that is meant and the recipe of its run."""
    from fastaug.training.checkpoint import latest

    is_run = (arguments.path / "recipe.yaml").is_file()
    run = arguments.path if is_run else arguments.path.resolve().parent.parent
    path = latest(run / "checkpoints")[0] if is_run else arguments.path
    if path is None or not (run / "recipe.yaml").is_file():
        raise StorageError(f"{arguments.path}: neither a run folder with a checkpoint nor a checkpoint of a run")
    weights = [f"eval.weights={arguments.weights}"] if arguments.weights else []
    copies = [] if arguments.tta is None else [f"eval.tta={arguments.tta}"]
    untrained = ["run.trackers=[]", "model.pretrained=false", "model.initial_checkpoint=null", "augment.start_epochs=0"]
    untrained += parts_that_act(arguments, run) + shift_of(arguments, run)
    return path, read_recipe(run / "recipe.yaml", [*arguments.overrides, *weights, *copies, *untrained])


def parts_that_act(arguments: argparse.Namespace, run: Path) -> list[str]:
    """Overrides that leave learned parts out where none acts, and take reused ones from the run where they act."""
    stored, _ = read_stored(run / "recipe.yaml")
    if not (stored.eval.tta if arguments.tta is None else arguments.tta):
        if any(word.startswith("eval.tta=") for word in arguments.overrides):
            raise RecipeError(["eval.tta: give it as --tta, which also brings the policy back"])
        # A run that learned nothing has trained on its meta split too.
        return ["meta.learn=[]", "meta.reuse=null", f"meta.frozen={str(stored.meta.acts_frozen).lower()}"]
    return [] if stored.meta.reuse is None else [f"meta.reuse={run}"]


def shift_of(arguments: argparse.Namespace, run: Path) -> list[str]:
    """Overrides that leave training images as they were trained on, where only those held out are shifted."""
    data = read_stored(run / "recipe.yaml")[0].data
    return ["data.known_shift=none"] if arguments.split == "train" and not data.known_shift_train else []


def learned_policy(
    path: Path, recipe: Recipe, parts: "DataParts", network: "nn.Module", state: dict[str, Any], device: "torch.device"
) -> "LearnedParts | None":
    """What the checkpoint's run has learned that acts on images; None if nothing does."""
    import torch

    from fastaug.meta.learned_part import Setting
    from fastaug.meta.parameters import parts_on_images
    from fastaug.meta.reuse import reused_parts
    from fastaug.nets.optim import build_optimizer

    if not recipe.meta.learn and recipe.meta.reuse is None:
        return None
    labels = None if parts.index is None else torch.from_numpy(parts.index.labels)
    images, optimizer = 0 if labels is None else len(labels), build_optimizer(recipe.optim, network)
    setting = Setting(recipe, images, len(parts.classes), optimizer, device, labels=labels)
    if recipe.meta.reuse is not None:
        return reused_parts(setting, {state["data"]}, lambda _: state, lambda _: None)
    try:
        return parts_on_images(setting, state["meta"]["learned"])
    except (LookupError, RuntimeError) as error:
        raise StorageError(f"{path}: does not hold the policy that its recipe learns ({error})") from error


class Restored(NamedTuple):
    """The network of a checkpoint and the data of its recipe, with labels as the network's outputs."""

    recipe: Recipe
    accelerator: "Accelerator"
    parts: "DataParts"
    network: "nn.Module"
    state: dict[str, Any]


def restored(path: Path, recipe: Recipe) -> Restored:
    """What the checkpoint folder `path` holds, and what `recipe` evaluates it on."""
    from fastaug.distributed import build_accelerator
    from fastaug.training import checkpoint
    from fastaug.training.build import build_network
    from fastaug.training.build_data import find_data
    from fastaug.training.trainer_state import class_names, load_weights

    accelerator = build_accelerator(recipe)
    weights, state = checkpoint.load(path)
    parts = find_data(recipe, accelerator)
    trained = class_names(state)
    if trained is None:
        accelerator.print(f"{path} is of a version that kept no class names: classes are matched by their order")
    else:
        parts = parts.for_network(trained)
    network = build_network(recipe, len(parts.classes), accelerator)
    load_weights(network, weights["ema" if recipe.eval.weights == "ema" else "model"])
    return Restored(recipe, accelerator, parts, network, state)


def shown_figures(figures: dict[str, Any]) -> dict[str, str]:
    """The figures that are one number or word, those of test-time augmentation among them."""
    tta = {f"tta {name}": value for name, value in figures.get("tta", {}).items()}
    return {name: str(value) for name, value in (figures | tta).items() if not isinstance(value, (list, dict))}


def evaluate_path(arguments: argparse.Namespace) -> None:
    """Prints the figures and writes them where asked."""
    from fastaug.augment.pipeline import BatchAugment
    from fastaug.console import Console
    from fastaug.data.class_names import shown
    from fastaug.evaluation.class_table import print_worst, table_lines
    from fastaug.evaluation.evaluate import Evaluator
    from fastaug.evaluation.latency import measured_cost, parameters
    from fastaug.provenance import versions
    from fastaug.training.build_data import evaluation_loader

    path, recipe = checkpoint_and_recipe(arguments)
    recipe, accelerator, parts, network, state = restored(path, recipe)
    console = Console(accelerator.is_main_process)
    loader = evaluation_loader(recipe, accelerator, parts, parts.splits.of(arguments.split))
    learned = learned_policy(path, recipe, parts, network, state, accelerator.device) if recipe.eval.tta else None
    augment = BatchAugment(recipe, len(parts.classes), learned=learned)
    evaluator = Evaluator(recipe, accelerator, parts, loader, augment)
    figures: dict[str, Any] = evaluator.run(network, arguments.split, recipe.eval.tta, details=True)
    figures = {"weights": recipe.eval.weights, **figures, "parameters": parameters(network)}
    if arguments.latency:
        side = recipe.eval.img_size or recipe.data.img_size
        shape = (len(recipe.data.mean), side, side)
        figures |= measured_cost(network, shape, accelerator.device, arguments.latency, accelerator.autocast)
    for sample, reason in loader.skipped.items():
        print(f"skipped: damaged image {shown(parts.name_of(sample))}: {reason}")
    if arguments.per_class:
        for line in table_lines(figures["classes"]):
            console.print(line)
    print_worst(console, figures)
    console.summary(f"{path}, {arguments.split}", shown_figures(figures))
    if arguments.json and accelerator.is_main_process:
        result = {"checkpoint": str(path), "split": arguments.split, "figures": figures, "versions": versions()}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    accelerator.end_training()


def main() -> int:
    """The exit code, as that of train.py."""
    return told(lambda: evaluate_path(parse()))


if __name__ == "__main__":
    sys.exit(main())

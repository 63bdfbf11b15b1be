"""Tries how far a frozen network goes: logistic regression on its features, computed once.

    fastaug linear-probe quickstart data.select_fraction=0.1

The network and its weights are those of the recipe (model.initial_checkpoint or model.pretrained); features are those
of evaluation images. The strength of regularisation is chosen on the select split; the test split is only evaluated.
"""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastaug.commands._argument_types import output_file
from fastaug.errors import DataError, RecipeError, told
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fastaug.data.build import DataParts
    from fastaug.evaluation.linear_probe import Features


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug linear-probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file; recipes/ has examples")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces one value of the recipe")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")
    return parser.parse_intermixed_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Extracts or finds features, fits, prints, writes what is asked for."""
    recipe = read_recipe(arguments.recipe, [*arguments.overrides, "run.trackers=[]"])
    check(recipe)
    from fastaug.distributed import build_accelerator
    from fastaug.evaluation.linear_probe import choose
    from fastaug.evaluation.metrics import Evaluation
    from fastaug.training.build_data import find_data

    accelerator = build_accelerator(recipe)
    parts = find_data(recipe, accelerator)
    if not len(parts.splits.select) or not len(parts.splits.test):
        raise DataError("data.select_fraction: the probe chooses C on select and tells of test; set both fractions")
    found = dict(every_split(recipe, accelerator, parts, accelerator.print))
    classes = len(parts.classes)
    strength, probe, chances = choose(found["train"], found["select"], classes)
    for each, top1 in chances.items():
        accelerator.print(f"C = {each:g}: select top-1 {top1:.4f}")
    figures: dict[str, Any] = {"C": strength, "features": found["train"].features.shape[1]}
    for split in ("select", "test"):
        meter = Evaluation(classes, recipe.eval.ece_bins, found[split].labels.device)
        meter.add(probe.logits(found[split].features), found[split].labels)
        figures[split] = meter.result(accelerator)
    test = figures["test"]
    accelerator.print(f"C = {strength:g}: test top-1 {test['top1']:.4f}  balanced {test['balanced_top1']:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    accelerator.end_training()


def check(recipe: Recipe) -> None:
    """RecipeError where there is nothing to probe."""
    if not (recipe.model.pretrained or recipe.model.initial_checkpoint):
        raise RecipeError(["model.initial_checkpoint: the features of random weights say nothing; set it"])
    if recipe.data.loader == "synthetic":
        raise RecipeError(["data.loader: synthetic images show nothing to tell apart; set dali"])
    if recipe.data.multi_label != "off":
        raise RecipeError(["data.multi_label: a probe tells one class of an image; leave it out, with one label each"])


def every_split(
    recipe: Recipe, accelerator: "Accelerator", parts: "DataParts", say: Callable[[str], None]
) -> "list[tuple[str, Features]]":
    """The features of train, select and test, by name; from the cache where they are there."""
    from fastaug.augment.pipeline import BatchAugment
    from fastaug.evaluation import linear_probe as probing
    from fastaug.training.build import build_network
    from fastaug.training.build_data import build_crop, evaluated, evaluation_loader

    network = build_network(recipe, len(parts.classes), accelerator, lambda fit: say("\n".join(fit.lines())))
    if not hasattr(network, "forward_head"):
        raise RecipeError([f"model.name: {recipe.model.name} does not tell features from its head; choose another"])
    forget_head(network)
    augment = BatchAugment(recipe, len(parts.classes))
    crop = build_crop(recipe, evaluated(recipe), recipe.eval.img_size or recipe.data.img_size)
    pixels = [recipe.data.mean, recipe.data.std, recipe.data.known_shift, recipe.data.exif, recipe.model.name]
    found = []
    for split in ("train", "select", "test"):
        ids = parts.splits.of(split)
        key = probing.fingerprint(network, parts, ids, crop, pixels)
        features = None if key is None else probing.load(key)
        source = "kept" if features is not None else "computed"
        if features is None:
            loader = evaluation_loader(recipe, accelerator, parts, ids)
            features = probing.extract(network, loader, augment, ids, recipe.eval.batch_size)
            if key is not None:
                probing.keep(key, features)
        say(f"{split}: features of {len(features.ids)} of {len(ids)} images, {source}")
        found.append((split, features))
    return found


def forget_head(network: Any) -> None:
    """Takes the classifier off: it is new, and features do not depend on it."""
    network.reset_classifier(0)


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: run(parse(argv)))

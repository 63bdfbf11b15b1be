"""Distorts training images on purpose: fewer, uneven classes, wrong labels; keeps the truth beside.

    fastaug distort recipes/mnist5k_weights.yaml --imbalance 100 --noise 0.1 --seed 0 --out distorted

Then train as the tool says: data.splits=distorted/splits data.labels=distorted/labels.tsv. distorted/control has the
meta split in train: the fair control, which sees the same clean images. The order, the kinds of noise and the files:
docs/noisy_data.md. The same arguments write the same files.

--human FILE --column NAME takes labels that people gave in place of drawn ones. --judge FOLDER draws nothing: it says
how many wrong labels of that distortion the file data.labels repairs, and how many right ones it spoils.
"""

import argparse
import hashlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.errors import FastaugError, RecipeError
from fastaug.recipe.reading import read_recipe

if TYPE_CHECKING:
    from fastaug.data.build import DataParts
    from fastaug.data.distortion import Distorted, Matrix
    from fastaug.data.distortion_files import Drawn
    from fastaug.data.splits import Splits

# No part acts or learns while images are only listed, so that the meta split is what it is in training. What run.plant
# flips is undone: the labels of the folders are the truth, and those of data.labels are what is judged.
AS_LISTED = ["meta.learn=[]", "meta.reuse=null", "meta.frozen=false", "run.plant=0", "run.plant_like=null"]
DRAWING = ("subsample", "imbalance", "noise", "kind", "confusion", "human", "overfit", "oversplit", "seed")
SHOWN = ("training_images", "wrong_labels", "realised_noise", "realised_imbalance")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug distort", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the recipe")
    parser.add_argument("--subsample", type=float, default=1.0, metavar="SR", help="share of images kept (default 1)")
    parser.add_argument("--imbalance", type=float, default=1.0, metavar="IR", help="images of common to rare classes")
    parser.add_argument("--noise", type=float, default=0.0, metavar="NR", help="share of wrong labels (default 0)")
    parser.add_argument(
        "--kind", default="uniform", help="which label: uniform, uniform_all, pairwise, classwise, confusion"
    )
    parser.add_argument("--confusion", type=Path, metavar="RUN|CSV", help="whose mistakes noise of that kind repeats")
    parser.add_argument("--human", type=Path, metavar="FILE", help="labels by people, of CIFAR-N")
    parser.add_argument("--column", metavar="NAME", help="of --human (default worse_label)")
    ablation = parser.add_mutually_exclusive_group()
    ablation.add_argument("--overfit", action="store_true", help="meta split = test split: an upper bound, no result")
    ablation.add_argument("--oversplit", action="store_true", help="meta split = train split, all of it")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default 0)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="a distortion, to judge data.labels by its truth")
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.out is None) == (arguments.judge is None):
        parser.error("one of --out and --judge is needed")
    if arguments.human and arguments.noise:
        parser.error("--human gives the labels: leave --noise out")
    if arguments.column and not arguments.human:
        parser.error("--column is one of --human FILE: name the file, or leave --column out")
    if bool(arguments.confusion) != (arguments.kind == "confusion"):
        parser.error("--kind confusion and --confusion need one another")
    changed = [name for name in DRAWING if getattr(arguments, name) != parser.get_default(name)]
    if arguments.judge and changed:
        parser.error(f"--judge draws nothing: leave --{changed[0]} out")
    arguments.column = arguments.column or "worse_label"
    return arguments


def found_data(arguments: argparse.Namespace) -> "DataParts":
    """Images, true labels and splits of the recipe."""
    recipe = read_recipe(arguments.recipe, [*arguments.overrides, *AS_LISTED])
    if recipe.data.loader == "synthetic":
        raise RecipeError(["data.loader: synthetic has no labels to replace; name a data.root"])
    if recipe.data.multi_label != "off":
        raise RecipeError(["data.multi_label: a distortion replaces the one label of an image; leave it out"])
    if arguments.judge is None and recipe.data.labels is not None:
        raise RecipeError(["data.labels: a distortion is drawn of the labels of the folders; set it to null"])
    if arguments.judge is not None and recipe.data.labels is None:
        raise RecipeError(
            [
                "data.labels: null leaves the labels of the folders, which are the truth: nothing is there to judge; "
                "name the file of labels that --judge is to judge, or "
                f"data.labels={arguments.judge}/labels.tsv for those of the distortion"
            ]
        )
    from fastaug.distributed import build_accelerator
    from fastaug.training.build_data import find_data

    return find_data(recipe, build_accelerator(recipe))


# ---- drawing ----


def draw(arguments: argparse.Namespace, parts: "DataParts") -> "Drawn":
    """What the arguments make of the recipe's images."""
    from fastaug.data.distortion import Distortion, distorted
    from fastaug.data.distortion_files import Drawn

    index, splits = parts.index, start_of(arguments, parts)
    assert index is not None
    given = {name: getattr(arguments, name) for name in ("subsample", "imbalance", "noise", "kind", "seed")}
    try:
        settings = Distortion(**given)
        matrix, source = confusion_of(arguments, parts.classes)
        found = distorted(index.labels, splits.train, len(parts.classes), settings, matrix)
    except ValueError as error:
        raise RecipeError([f"--{error}"]) from error
    if arguments.human:
        found, source = labelled_by_people(arguments, parts, found)
    splits = replace(splits, train=found.train)
    return Drawn(index, splits, found, {**asdict(settings), **source, "meta_shares": splits.meta_shares})


def start_of(arguments: argparse.Namespace, parts: "DataParts") -> "Splits":
    """The recipe's splits, or those of an ablation."""
    import numpy as np

    splits = parts.splits
    if arguments.overfit:
        return replace(splits, meta_shares="test")
    if arguments.oversplit:
        return replace(splits, train=np.union1d(splits.train, splits.meta), meta=splits.meta[:0], meta_shares="train")
    return splits


def confusion_of(arguments: argparse.Namespace, classes: tuple[str, ...]) -> "tuple[Matrix | None, dict[str, str]]":
    """The confusion that is named, and what tells it from another."""
    if arguments.confusion is None:
        return None, {}
    from fastaug.commands.show_features import run_confusion
    from fastaug.evaluation.confusion import read_confusion

    is_run = (arguments.confusion / "recipe.yaml").is_file()
    matrix = run_confusion(arguments.confusion, classes) if is_run else read_confusion(arguments.confusion, classes)
    return matrix, {"confusion": hashlib.sha256(matrix.astype("<f8").tobytes()).hexdigest()}


def labelled_by_people(
    arguments: argparse.Namespace, parts: "DataParts", found: "Distorted"
) -> "tuple[Distorted, dict[str, str]]":
    """The same images with the labels of --human."""
    from fastaug.data.sources.human_labels import human_labels

    assert parts.index is not None
    ids, labels = human_labels(arguments.human, arguments.column, parts.index, found.train)
    return found._replace(ids=ids, labels=labels), {"kind": f"human: {arguments.column}"}


def tell(arguments: argparse.Namespace, drawn: "Drawn", record: dict[str, Any]) -> None:
    """What was drawn, what is remarkable about it, and how to train on it."""
    out = arguments.out
    print(f"{out}:", ", ".join(f"{name} {record[name]:.4g}" for name in SHOWN if record[name] is not None))
    rare = [name for name, of in record["classes"].items() if of["images"] < 2]
    if rare:
        print(f"classes with one training image or none: {', '.join(rare[:10])}, {len(rare)} in all", file=sys.stderr)
    if drawn.splits.meta_shares == "test":
        text = "the meta step will learn from the test split: an UPPER BOUND, never a result; no fair control"
        print(f"--overfit: {text}", file=sys.stderr)
    elif drawn.splits.meta_shares == "train":
        print("--oversplit: the meta step will validate on training images, wrong labels too", file=sys.stderr)
    zeros = " ".join(f"data.{name}_fraction=0" for name in ("meta", "select", "test"))
    print(f"train with: data.splits={out}/splits data.labels={out}/labels.tsv {zeros}")


# ---- judging ----


def judge(folder: Path, parts: "DataParts") -> str:
    """How many wrong labels of a distortion data.labels repairs and leaves, and how many right ones it spoils."""
    import numpy as np

    from fastaug.data.distortion_files import read_truth
    from fastaug.data.label_files import with_labels

    assert parts.index is not None
    assert parts.folder_labels is not None
    clean = replace(parts.index, labels=parts.folder_labels)
    ids, true = read_truth(folder, clean)
    everyone = replace(parts.splits, train=np.arange(len(clean)))
    before, now = with_labels(clean, everyone, folder / "labels.tsv").labels[ids], parts.index.labels[ids]
    wrong, trained = before != true, np.isin(ids, parts.splits.train)
    rows = {
        "wrong before": wrong,
        "repaired": wrong & trained & (now == true),
        "left out of training": wrong & ~trained,
        "still wrong": wrong & trained & (now != true),
        "right ones spoiled": ~wrong & trained & (now != true),
        "right ones left out of training": ~wrong & ~trained,
    }
    return "\n".join([f"{len(ids)} training images of {folder}", *(f"{name}: {n.sum()}" for name, n in rows.items())])


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    arguments = parse(argv)
    try:
        parts = found_data(arguments)
        if arguments.judge:
            print(judge(arguments.judge, parts))
            return 0
        from fastaug.data.distortion_files import write_distortion

        drawn = draw(arguments, parts)
        tell(arguments, drawn, write_distortion(arguments.out, drawn))
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"--out: {arguments.out} cannot be written: {error}", file=sys.stderr)
        return 5
    return 0

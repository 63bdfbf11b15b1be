"""Classifies images with the network of a run, by class names, on the screen or as a table.

    fastaug predict runs/quickstart seven.png --top-k 3
    fastaug predict runs/photos wds:/data/photos --csv photos.csv

Images that cannot be decoded are named, and do not end the command. docs/using_models.md has its options.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastaug.atomic_files import write_atomically
from fastaug.commands._argument_types import output_file
from fastaug.errors import FastaugError, RecipeError, StorageError, remedy_of

if TYPE_CHECKING:
    from fastaug.data.packed.index import PackedSet
    from fastaug.inference.prediction import Predictions

_FORMS = ("csv", "json", "parquet")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="RUN|CHECKPOINT", help="run folder, or a checkpoints/step-* of it")
    parser.add_argument(
        "images", nargs="+", metavar="FILE|FOLDER|KIND:PLACE", help="images and folders, or one packed set, as wds:TARS"
    )
    parser.add_argument(
        "--input-key", metavar="NAME", help="where the records of a packed set have their images, as data.input_key"
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="classes told of an image (5, or all if there are fewer)"
    )
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: as the recipe's headline")
    parser.add_argument("--best", action="store_true", help="the best checkpoint of a run folder, not the last one")
    parser.add_argument("--tta", type=int, default=0, metavar="A", help="average over A copies under the run's policy")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divide logits by what evaluate --temperature fitted",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at a time (eval.batch_size)")
    for form in _FORMS:
        parser.add_argument(f"--{form}", type=output_file, metavar="FILE", help=f"write the predictions as {form} here")
    arguments = parser.parse_args(argv)
    for name, lowest in (("top_k", 1), ("batch_size", 1), ("tta", 0)):
        if (value := getattr(arguments, name)) is not None and value < lowest:
            parser.error(f"--{name.replace('_', '-')}: {value} must be at least {lowest}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of train.py; images that cannot be decoded are named, and do not change it."""
    arguments = parse(argv)
    try:
        predict_files(arguments)
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def predict_files(arguments: argparse.Namespace) -> None:
    """Finds the images, classifies them, tells and writes; what can be refused is, before the first is read."""
    from fastaug.inference.prediction import build_predictor, predict
    from fastaug.inference.prediction_files import FORMS, check_parquet

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            ["predict runs as one process; start it without a launcher, and share the files out yourself"]
        )
    wanted = {form: file for form in _FORMS if (file := getattr(arguments, form)) is not None}
    if "parquet" in wanted:
        check_parquet()
    predictor = build_predictor(
        arguments.path,
        weights=arguments.weights,
        which="best" if arguments.best else "last",
        copies=arguments.tta,
        batch_size=arguments.batch_size,
    )
    images = find(arguments, predictor.facts.preprocessing.channels)
    if predictor.facts.incomplete:
        print(predictor.facts.incomplete, file=sys.stderr)
    found = predict(predictor, images, arguments.top_k, arguments.temperature)
    for form, file in wanted.items():
        try:
            write_atomically(file, FORMS[form](found))
        except OSError as error:
            raise StorageError(f"--{form}: {file} cannot be written: {error}; {remedy_of(error)}") from error
    tell(found, quiet=bool(wanted))


def find(arguments: argparse.Namespace, channels: int) -> "list[bytes] | PackedSet":
    """The image files that are named, or the packed set; files of folders with other endings are told.

    RecipeError for a packed set beside others, and for --input-key without one.
    """
    from fastaug.data.loose_files import find_images, told
    from fastaug.data.packed.unlabelled import packed_set

    packed = [found for word in arguments.images if (found := packed_set(word, arguments.input_key)) is not None]
    if packed and len(arguments.images) > 1:
        raise RecipeError([f"{packed[0]}: a packed set is classified alone; name other images in a command of theirs"])
    if packed:
        return packed[0]
    if arguments.input_key is not None:
        raise RecipeError(["--input-key: names a part of the records of a packed set, and none is given; leave it out"])
    images = find_images(map(Path, arguments.images), channels)
    if images.others:
        print(f"left out, for images have other endings: {told(images.others)}", file=sys.stderr)
    return images.paths


def tell(found: "Predictions", quiet: bool) -> None:
    """A line an image, unless `quiet`; always one for each that cannot be decoded, and how many there were."""
    from fastaug.data.class_names import shown

    for row, path in enumerate(found.paths):
        name = shown(os.fsdecode(path))
        if row in found.damaged:
            print(f"skipped: damaged image {name}: {found.damaged[row]}", file=sys.stderr)
        elif not quiet:
            ranked = zip(found.outputs[row], found.probabilities[row], strict=True)
            print(f"{name}: " + ", ".join(f"{shown(found.classes[output])} {chance:.4f}" for output, chance in ranked))
    if quiet:
        print(f"{len(found.paths) - len(found.damaged)} images classified, {len(found.damaged)} damaged")

"""Shows what networks make of a held-out split: features on a plane, and what they confuse.

    fastaug show-features runs/control runs/instant

Writes into each run folder features.png (t-SNE of the last layer's inputs: a dot for each image in the colour of its
class, wrong ones larger, and the density of each class), confusion.png (each row a true class, in percent) and
confusion.csv, which `fastaug distort` --confusion reads. t-SNE is scikit-learn's: pip install scikit-learn.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastaug.errors import FastaugError, RecipeError

if TYPE_CHECKING:
    from PIL import Image

    from fastaug.evaluation.confusion import Matrix, Seen


FEWEST = 8  # images on a map


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug show-features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--split", default="test", choices=("select", "test"))
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="most dots of the map (default 2000)")
    parser.add_argument("--no-map", action="store_true", help="the confusions alone")
    arguments = parser.parse_args(argv)
    if arguments.images < FEWEST:
        parser.error(f"--images must be at least {FEWEST}, found {arguments.images}")
    return arguments


def seen_by(run: Path, split: str) -> "tuple[Seen, tuple[str, ...]]":
    """What the last checkpoint of a run makes of a split ("": select if there is one, else test), and its classes."""
    from fastaug.augment.pipeline import BatchAugment
    from fastaug.data.sampler import evaluation_requests
    from fastaug.evaluation.confusion import look
    from fastaug.training.borrowed_process import borrowed_process
    from fastaug.training.build_data import evaluation_loader
    from fastaug.training.evaluate_run import Wanted, checkpoint_and_recipe, restored

    path, recipe = checkpoint_and_recipe(Wanted(run, split or "test", tta=0))
    if recipe.data.multi_label != "off":
        raise RecipeError([f"{run}: data.multi_label: images of several classes have no confusions; name another run"])
    with borrowed_process():  # another run may be of another precision
        found = restored(path, recipe)
        ids = found.parts.splits.of(split or found.parts.held_out()[0])
        loader = evaluation_loader(recipe, found.accelerator, found.parts, ids)
        batches = loader.batches(evaluation_requests(ids, recipe.eval.batch_size, 1, 0))
        classes = found.parts.classes
        return look(found.network, batches, BatchAugment(recipe, len(classes)), len(classes)), classes


def run_confusion(run: Path, names: tuple[str, ...]) -> "Matrix":
    """How a run's network confuses the classes `names` on its select split, or its test split if it has no other."""
    from fastaug.evaluation.confusion import confusion_matrix, in_order

    seen, classes = seen_by(run, "")
    return in_order(confusion_matrix(seen, len(classes)), classes, names, str(run))


def on_a_plane(seen: "Seen", names: tuple[str, ...], most: int) -> "Image.Image":
    """The map of at most `most` images, spread over the split."""
    if len(seen.labels) < FEWEST:
        raise RecipeError([f"features.png: of {len(seen.labels)} images there is no map; --no-map leaves it out"])
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        text = f"features.png: t-SNE is scikit-learn's, which is not here ({error}): pip install scikit-learn"
        raise RecipeError([f"{text}, or --no-map"]) from error
    from fastaug.reports.feature_map import feature_map

    some = slice(None, None, -(-len(seen.labels) // most))
    labels, predicted, features = (values[some].numpy() for values in seen)
    perplexity = min(30.0, (len(labels) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(features)
    return feature_map(points.astype("float64"), labels, labels != predicted, names)


def show(run: Path, arguments: argparse.Namespace) -> list[Path]:
    """Writes the pictures and the matrix of a run; their paths."""
    from fastaug.atomic_files import write_atomically
    from fastaug.evaluation.confusion import confusion_csv, confusion_matrix
    from fastaug.reports.feature_map import confusion_picture
    from fastaug.reports.thumbnails import png

    seen, classes = seen_by(run, arguments.split)
    matrix = confusion_matrix(seen, len(classes))
    files = {"confusion.csv": confusion_csv(matrix, classes), "confusion.png": png(confusion_picture(matrix, classes))}
    if not arguments.no_map:
        files["features.png"] = png(on_a_plane(seen, classes, arguments.images))
    for name, content in files.items():
        write_atomically(run / name, content)
    return [run / name for name in files]


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    arguments = parse(argv)
    try:
        for run in arguments.runs:
            print(*show(run, arguments), sep="\n")
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"a picture cannot be written: {error}", file=sys.stderr)
        return 5
    return 0

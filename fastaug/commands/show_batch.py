"""Draws the first training batch of a recipe: as loaded, partner, result, difference and targets.

    fastaug show-batch mnist5k_sa --out batch.png

A row per sample.

"As loaded" is cropped and, where the recipe has a fixed policy (augment.aa), under it.
"""

import argparse
from typing import TYPE_CHECKING

from fastaug.commands._argument_types import output_file
from fastaug.errors import told
from fastaug.recipe.reading import UNTRAINED, read_untrained

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastaug.batch import Batch
    from fastaug.recipe.schema import Recipe
    from fastaug.training.build import Trainer


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug show-batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the recipe")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.png", help="the picture")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="rows (default 8)")
    parser.add_argument(
        "--curve", action="store_true", help="instead: the first image shifted, with s(v) for k = 1 to 4 below"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.images < 1:
        parser.error(f"--images must be at least 1, found {arguments.images}")
    return arguments


def first_batch(recipe: "Recipe") -> "tuple[Trainer, Batch]":
    """The first batch that a recipe trains on, and the parts that would train on it."""
    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    folder = RunFolder(recipe.run.dir or "")  # named only: nothing is written there
    trainer = assemble(recipe, build_accelerator(recipe), folder, Console(False))
    return trainer, next(trainer.loader.batches(trainer.order.requests(0, 1)))


def picture(arguments: argparse.Namespace) -> "Image":
    """The picture that the command line asks for."""
    # Before the slow imports.
    recipe = read_untrained(arguments.recipe, [*arguments.overrides, *UNTRAINED, "distill={}"])
    import torch

    from fastaug.reports.batch_grid import batch_grid, shown_batch, softening_curve

    trainer, batch = first_batch(recipe)
    if arguments.curve:
        return softening_curve(batch.images[0].cpu(), 255 * torch.tensor(recipe.data.mean))
    augmented = trainer.augment.training(batch, 0)
    return batch_grid(*shown_batch(trainer.augment, trainer.parts.classes, batch, augmented, 0, arguments.images))


def draw(arguments: argparse.Namespace) -> None:
    """Writes the picture and prints its name."""
    picture(arguments).save(arguments.out, "PNG")
    print(arguments.out)


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: draw(parse(argv)))

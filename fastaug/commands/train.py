"""Trains one recipe; a run that has begun goes on from its newest checkpoint.

    fastaug train quickstart train.epochs=5
    fastaug train fine_tune data.root=FOLDER run.dir=runs/mine

Several processes: `accelerate launch -m fastaug train RECIPE`, `torchrun --nproc-per-node N -m fastaug train RECIPE`.
"""

import argparse
import sys

from fastaug.errors import RecipeError
from fastaug.recipe.key_table import describe
from fastaug.recipe.reading import read_recipe, to_yaml


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces one value of the recipe")
    parser.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="only print the keys of recipes, of one section or one section.key: type, default, limits, meaning",
    )
    parser.add_argument(
        "--check",
        choices=("recipe", "full"),
        metavar="full",
        help="(or --check=full) only validate and print the resolved recipe; full: also build and try the network",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but why it failed; the run folder has everything"
    )
    given = sys.argv[1:] if argv is None else argv
    # A bare --check must not swallow the override behind it, as argparse's optional values do.
    parsed = parser.parse_intermixed_args(["--check=recipe" if word == "--check" else word for word in given])
    if parsed.recipe is None and parsed.keys is None:
        parser.error("a recipe is needed; `fastaug recipes` lists examples, --keys prints what may stand in one")
    return parsed


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 internal, 2 recipe, 3 data, 4 non-finite, 5 storage, 6 peer, 75 stopped after saving."""
    arguments = parse(argv)
    try:
        if arguments.keys is not None:
            print(describe(arguments.keys), end="")
            return 0
        recipe = read_recipe(arguments.recipe, arguments.overrides)
        if arguments.check == "full":
            from fastaug.nets.check_names import check_names

            check_names(recipe)
    except RecipeError as error:
        print(
            *([f"{arguments.recipe} cannot be run:"] if arguments.keys is None else []),
            *error.problems,
            sep="\n  ",
            file=sys.stderr,
        )
        return error.code
    if arguments.check:
        print(to_yaml(recipe), end="")
        return 0
    from fastaug.training.worker import run

    return run(recipe, quiet=arguments.quiet)

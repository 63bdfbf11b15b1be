"""Checks a recipe and prints it with all its values; trains nothing.

    fastaug check quickstart optim.lr=0.01

Every problem is told at once; exit code 2 if there is one.
"""

import argparse

from fastaug.commands import train


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces one value of the recipe")
    parser.add_argument("--full", action="store_true", help="also build and try the network")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or 2 for a recipe that cannot be run. Imports no torch without --full."""
    arguments = parse(argv)
    how = "full" if arguments.full else "recipe"
    return train.main([f"--check={how}", arguments.recipe, *arguments.overrides])

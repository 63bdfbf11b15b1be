"""Prints what may stand in a recipe, all or one section or key: type, default, limits, meaning.

    fastaug keys optim.lr

Without a name: all of them. docs/recipes.md says how a recipe is written.
"""

import argparse

from fastaug.commands import train


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", nargs="?", default="", metavar="SECTION|SECTION.KEY", help="optim, optim.lr")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or 2 for what is no section or key."""
    return train.main([f"--keys={parse(argv).which}"])

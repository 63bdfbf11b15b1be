"""Lists the recipes that come with fastaug, by the names under which every command takes them.

    fastaug recipes

`fastaug check NAME` prints one with all its values.
"""

import argparse

from fastaug.recipe.shipped import FOLDER, shipped_names


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.parse_args(argv)


def first_line(name: str) -> str:
    """The first line of a recipe's comment."""
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    parse(argv)
    names = shipped_names()
    width = max(map(len, names))
    print(*(f"{name:{width}}  {first_line(name)}" for name in names), sep="\n")
    print(f"\n`fastaug check NAME` prints one with all its values; the files are in {FOLDER}")
    return 0

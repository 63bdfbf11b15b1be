"""Makes a recipe of a command line of timm's training script; says what became of each argument.

    fastaug from-timm "./distributed_train.sh 8 --data-dir /data/imagenet --model resnet50 --amp" --out my.yaml
    fastaug from-timm output/train/RUN/args.yaml --processes 8 > my.yaml
    fastaug from-timm - < command.txt

With --out the table goes to standard output, else the recipe does, and the table to standard error. docs/from_timm.md
has every argument.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastaug.commands._argument_types import output_file
from fastaug.errors import RecipeError, told

if TYPE_CHECKING:
    from fastaug.recipe.timm_script.command_line import Given
    from fastaug.recipe.timm_script.conversion import Conversion


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug from-timm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "given", nargs="?", metavar="COMMAND|FILE", help="a command in quotes, an args.yaml, or - to read one"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="how many trained, if the command does not say")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write the recipe there")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write keys and arguments")
    parser.add_argument("--table", action="store_true", help="print every argument of timm's, and what it is here")
    arguments = parser.parse_args(argv)
    if arguments.table == (arguments.given is not None):
        parser.error("give one command in quotes, one args.yaml, - for standard input, or --table")
    if arguments.out is not None and arguments.out.exists():
        parser.error(f"{arguments.out} is there already; name another file")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Converts, checks the recipe, writes and tells."""
    from fastaug.recipe.timm_script.convert import converted
    from fastaug.recipe.timm_script.recipe_text import arguments_page, as_json, recipe_text, table

    if arguments.table:
        print(arguments_page(), end="")
        return
    made = converted(read(arguments.given, arguments.processes))
    text = recipe_text(made, str(arguments.out or "RECIPE.yaml"))
    check(text, made)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
    print(table(made), file=sys.stderr if arguments.out is None else sys.stdout)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(made), indent=1) + "\n")


def read(given: str, processes: int | None) -> "Given":
    """What was given: of a file, of standard input, or of the words."""
    from fastaug.recipe.timm_script.command_line import read_command, read_file

    if given == "-":
        return read_command(sys.stdin.read(), processes)
    if given.strip().endswith((".yaml", ".yml")) and len(given.split()) == 1:
        return read_file(Path(given.strip()), processes)
    return read_command(given, processes)


def check(text: str, made: "Conversion") -> None:
    """RecipeError, which names timm's argument for each key, unless the recipe is one."""
    from fastaug.recipe.reading import read_recipe

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        try:
            read_recipe(file, [])
        except RecipeError as error:
            raise RecipeError([f"{problem} ({origin(problem, made)})" for problem in error.problems]) from None


def origin(problem: str, made: "Conversion") -> str:
    """Which of timm's arguments became the key that a problem begins with."""
    key = problem.partition(":")[0]
    flags = [row.argument.flag for row in made.rows.values() if key in row.keys]
    return f"after conversion; change timm's {' or '.join(flags) or 'argument for it'}"


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or 2 where the arguments are not timm's or make no recipe."""
    return told(lambda: run(parse(argv)))

"""The command `fastaug`: fastaug train|evaluate|predict|... [ARGUMENTS]. Every file of commands/ is one of them.

Several processes: accelerate launch -m fastaug train RECIPE; torchrun --nproc-per-node N -m fastaug train RECIPE.
"""

import os
import sys

if __package__ in (None, ""):  # run as a file: Python put fastaug/ first on sys.path
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(HERE), *(entry for entry in sys.path if entry != HERE)]

import ast
import difflib
import textwrap
from importlib import import_module
from pathlib import Path

from fastaug import __version__

FOLDER = Path(__file__).resolve().parent / "commands"
FIRST = ("train", "evaluate", "predict", "export", "report", "study", "check", "keys", "recipes")  # in the list
USAGE = 2  # exit code, as argparse's


def commands() -> list[str]:
    """The names of all commands, the everyday ones first; nothing is imported."""
    found = {path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py")}
    return [*(name for name in FIRST if name in found), *sorted(found - set(FIRST))]


def line(name: str) -> str:
    """What a command does: the first line of its file."""
    text = (FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def listed() -> str:
    """The help: every command with its line."""
    width = max(len(name) for name in commands()) + 4
    gap = " " * width
    lines = [
        textwrap.fill(line(name), 120, initial_indent=f"  {name}".ljust(width), subsequent_indent=gap)
        for name in commands()
    ]
    several = "several processes: accelerate launch -m fastaug train RECIPE, or torchrun in place of accelerate launch"
    head = f"usage: fastaug COMMAND [ARGUMENTS]    (fastaug {__version__}; fastaug COMMAND --help says more)"
    return "\n".join([head, "", *lines, "", several, ""])


def main(argv: list[str] | None = None) -> int:
    """The exit code of the command that `argv` begins with."""
    given = sys.argv[1:] if argv is None else argv
    if not given or given[0] in ("-h", "--help", "help"):
        print(listed(), end="")
        return 0 if given else USAGE
    if given[0] in ("-V", "--version"):
        print(f"fastaug {__version__}")
        return 0
    name = given[0].replace("_", "-")
    if name not in commands():
        near = difflib.get_close_matches(name[:100], commands(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        print(f"fastaug: no command {given[0][:100]!r}; {hint}`fastaug --help` lists all", file=sys.stderr)
        return USAGE
    code: int = import_module(f"fastaug.commands.{name.replace('-', '_')}").main(given[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())

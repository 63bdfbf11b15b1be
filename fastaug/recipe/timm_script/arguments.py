"""Every argument of timm's training script: a fact of `arguments.yaml` each, and the parser that they make up."""

import argparse
import ast
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from fastaug.errors import RecipeError
from fastaug.recipe.strict_yaml import parse_yaml

FILE = Path(__file__).with_name("arguments.yaml")
SCRIPT = "timm's train.py of 1.0.29 to 1.0.31"
_TYPES = {"str": str, "int": int, "float": float}


@dataclass(frozen=True)
class Argument:
    """One argument: what timm's parser knows of it, and what becomes of it here, in one of four ways.

    `key`: the key of a recipe that has its value; `here`: told in words, for conversion.py works it out; `lacks`: it
    has no counterpart, and what happens instead; `idle`: it does not change what is trained.
    """

    name: str
    options: list[str]
    kind: str
    default: Any
    nargs: str | int | None = None
    const: Any = None
    choices: list[str] = field(default_factory=list)
    since: str = ""
    until: str = ""
    key: str = ""
    here: str = ""
    lacks: str = ""
    idle: str = ""

    @property
    def flag(self) -> str:
        """Its longest option, as it is written; DIR for the one without."""
        return max(self.options, key=len, default="DIR")

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return self.nargs in ("+", "*") or isinstance(self.nargs, int)


@cache
def all_arguments() -> dict[str, Argument]:
    """Every argument by its name in args.yaml, in the order of timm's help; those of other versions last."""
    entries = parse_yaml(FILE.read_text(encoding="utf-8"))
    return {entry["name"]: Argument(**entry) for entry in entries}


class _Pairs(argparse.Action):
    """NAME=VALUE words as a mapping; a value is a Python literal or a text, as timm reads it."""

    def __call__(self, parser: Any, space: Any, values: Any, option: str | None = None) -> None:
        pairs = {}
        for word in values:
            name, equals, text = word.partition("=")
            if not (name and equals):
                parser.error(f"argument {option}: {word!r} is not NAME=VALUE")
            try:
                pairs[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                pairs[name] = text
        setattr(space, self.dest, pairs)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError([f"{message}; {SCRIPT} does not take that either"])


@cache
def _parser() -> _Parser:
    """A parser that keeps what is given alone."""
    parser = _Parser(prog="train.py", add_help=False, argument_default=argparse.SUPPRESS)
    for argument in all_arguments().values():
        taken: dict[str, Any] = {"dest": argument.name} if argument.options else {}
        if argument.kind == "flag":
            taken["action"] = "store_true"
        else:
            taken |= {"nargs": argument.nargs, "choices": argument.choices or None}
            taken |= {"action": _Pairs} if argument.kind == "kwargs" else {"type": _TYPES[argument.kind]}
            taken |= {"const": argument.const} if argument.const is not None else {}
        parser.add_argument(*(argument.options or [argument.name]), **taken)
    return parser


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """What the words behind `train.py` give, by name, as argparse reads them: abbreviations too; RecipeError else."""
    found, unknown = _parser().parse_known_args(list(words))
    if unknown:
        raise RecipeError([_unknown(word) for word in unknown])
    return vars(found)


def _unknown(word: str) -> str:
    if not word.startswith("-"):
        return f"{word[:100]!r}: belongs to no argument; quote what has blanks, leave other commands out"
    options = [option for argument in all_arguments().values() for option in argument.options]
    return f"{word[:100]}: unknown to {SCRIPT}{near(word.partition('=')[0], options)}"


def near(name: str, known: Sequence[str]) -> str:
    """Which of the `known` names are like `name`, as the end of a message."""
    close = difflib.get_close_matches(name[:100], known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else "; leave it out"


def checked_values(values: Any, source: str) -> dict[str, Any]:
    """What a YAML file of arguments gives, by name; RecipeError names every key and value that timm does not know."""
    if not isinstance(values, dict) or not values:
        raise RecipeError([f"{source}: no mapping of arguments; give the args.yaml of a run of timm"])
    known, problems, found = all_arguments(), [], {}
    for name, value in values.items():
        if name not in known:
            problems.append(f"{source}: {str(name)[:100]}: no argument of {SCRIPT}{near(str(name), list(known))}")
            continue
        try:
            found[name] = _value(known[name], value)
        except (TypeError, ValueError):
            problems.append(f"{source}: {name}: {str(value)[:100]!r} is no {known[name].kind}; give what timm wrote")
    if problems:
        raise RecipeError(problems)
    return found


def _value(argument: Argument, value: Any) -> Any:
    """`value` in the argument's type; TypeError or ValueError if it is of another."""
    if value is None and argument.default is None:
        return None
    if argument.kind in ("flag", "kwargs"):
        if not isinstance(value, bool if argument.kind == "flag" else dict):
            raise TypeError
        return value
    if argument.is_list:
        if not isinstance(value, list):
            raise TypeError
        return [_value_of(argument, each) for each in value]
    return _value_of(argument, value)


def _value_of(argument: Argument, value: Any) -> Any:
    if isinstance(value, (bool, list, dict)) or value is None:
        raise TypeError
    if argument.kind == "int" and isinstance(value, float) and value != int(value):
        raise ValueError
    typed = _TYPES[argument.kind](value)
    if argument.choices and typed not in argument.choices:
        raise ValueError
    return typed

"""Maps from names of weights elsewhere to timm's: regular expressions, packaged, in a file or in a recipe."""

import re
from pathlib import Path
from typing import TypeVar

from ruamel.yaml.error import YAMLError

from fastaug.atomic_files import open_regular
from fastaug.errors import RecipeError
from fastaug.recipe.strict_yaml import parse_yaml

KEY = "model.checkpoint_keys"
LARGEST_FILE = 2**17  # bytes
Value = TypeVar("Value")


def packaged() -> list[str]:
    """The maps that come with the package, by name."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def read_map(given: str | dict[str, str]) -> dict[str, str]:
    """The map that a recipe gives or names: packaged, or a YAML file of {pattern: replacement}; else RecipeError."""
    values = given if isinstance(given, dict) else _read_file(given)
    if not isinstance(values, dict) or not values or not all(isinstance(v, str) for v in [*values, *values.values()]):
        raise RecipeError([f"{KEY}: {given!r} is no map of texts; write {{'^backbone\\.': ''}}, or such a file"])
    for pattern in values:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError([f"{KEY}: {pattern!r} is no regular expression: {error}; mend it"]) from None
    return values


def _read_file(name: str) -> object:
    path = Path(__file__).parent / f"{name}.yaml" if name in packaged() else Path(name).expanduser()
    try:
        with open_regular(path) as file:
            return parse_yaml(file.read(LARGEST_FILE).decode("utf-8"))
    except FileNotFoundError:
        raise RecipeError([f"{KEY}: no file {name}, and no packaged map ({', '.join(packaged())})"]) from None
    except (OSError, ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            [f"{KEY}: {name} cannot be read ({reason}); give a YAML file of regular expressions"]
        ) from None


def renamed(weights: dict[str, Value], rules: dict[str, str]) -> dict[str, Value]:
    """`weights` under the names that `rules` make, all rules one after the other on each.

    RecipeError when a rule acts on no name, or two names become one.
    """
    names, idle = {name: name for name in weights}, []
    for pattern, replacement in rules.items():
        try:
            after = {old: re.sub(pattern, replacement, new) for old, new in names.items()}
        except (re.error, IndexError) as error:
            raise RecipeError([f"{KEY}: {replacement!r} cannot replace {pattern!r}: {error}; mend it"]) from None
        if after == names:
            idle.append(pattern)
        names = after
    if idle:
        example = ", ".join(list(weights)[:3])
        raise RecipeError([f"{KEY}: {idle[0]!r} changes none of the {len(weights)} names ({example}, ...); mend it"])
    found: dict[str, Value] = {}
    for old, new in names.items():
        if new in found:
            raise RecipeError([f"{KEY}: {old!r} and another name both become {new!r}; tell them apart"])
        found[new] = weights[old]
    return found

"""Recipes from YAML and the command line: strict, every problem at once. Nothing here imports torch.

YAML is read as YAML 1.2 reads numbers and booleans (`1e-3` is a number, `no` is a string); duplicate keys, aliases
and tags are refused. The values are merged by an OmegaConf structured config, which types them.
"""

import difflib
import re
import types
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf

from fastaug.errors import RecipeError
from fastaug.recipe.rules import key_of, validate
from fastaug.recipe.schema import Recipe


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader without YAML 1.1's surprises."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        what = "aliases (*name)" if isinstance(event, yaml.events.AliasEvent) else "tags (!name)"
        if isinstance(event, yaml.events.AliasEvent) or event.tag not in (None, "!"):
            raise yaml.composer.ComposerError(None, None, f"{what} are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _integer(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


def _set_yaml_12_resolvers() -> None:
    replaced = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
    _StrictLoader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in replaced]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    for tag, pattern, first in [
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+", "-+0123456789"),
        ("float", rf"{number}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ]:
        _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))
    _StrictLoader.add_constructor("tag:yaml.org,2002:int", _integer)


_set_yaml_12_resolvers()


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError when it is not strict YAML."""
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise yaml.YAMLError(f"cannot be read: {error}") from error
    finally:
        loader.dispose()


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _type_name(expected: Any) -> str:
    if isinstance(expected, types.UnionType) or get_origin(expected) is Union:
        return " or ".join(_type_name(part) for part in get_args(expected))
    if get_origin(expected) is list:
        return f"list of {_type_name(get_args(expected)[0])}"
    return {types.NoneType: "null", dict: "mapping"}.get(
        get_origin(expected) or expected, getattr(expected, "__name__", "")
    )


def _fits(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType) or get_origin(expected) is Union:
        return any(_fits(value, part) for part in get_args(expected))
    if get_origin(expected) is list:
        return isinstance(value, list) and all(_fits(element, get_args(expected)[0]) for element in value)
    if get_origin(expected) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)


def _type_problem(name: str, value: Any, expected: Any) -> str:
    hint = ""
    if isinstance(value, str):
        try:
            hint = "; write it without quotes" if _fits(parse_yaml(value), expected) else ""
        except yaml.YAMLError:
            hint = ""
    return f"{name}: expected {_type_name(expected)}, got {value!r} ({type(value).__name__}){hint}"


def _checked(values: Any, schema: type, prefix: str, problems: list[str]) -> dict[str, Any]:
    """The part of `values` that fits the dataclass `schema`; everything else is added to `problems`."""
    where = prefix.rstrip(".") or "the recipe"
    if not isinstance(values, dict):
        problems.append(f"{where}: expected a mapping of keys, got {values!r} ({type(values).__name__})")
        return {}
    hints, good = get_type_hints(schema), {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            known = [f.name for f in fields(schema)]
            problems.append(f"{name}: unknown key{_nearest(str(key), known)} (known: {', '.join(known)})")
        elif is_dataclass(hints[key]):
            good[key] = _checked(value, hints[key], f"{name}.", problems)
        elif isinstance(value, str) and ("${" in value or value == "???"):
            problems.append(f"{name}: {value!r} refers to other keys, which recipes do not do; write the value itself")
        elif not _fits(value, hints[key]):
            problems.append(_type_problem(name, value, hints[key]))
        else:
            good[key] = value
    return good


def _with_override(values: Any, override: str, problems: list[str]) -> None:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        problems.append(f"{override!r}: an override is written section.key=value")
        return
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        problems.append(f"{path}: {text!r} is not a YAML value ({' '.join(str(error).split())})")
        return
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {}) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values[last] = value
    else:
        problems.append(f"{path}: {'.'.join(parents)} is not a section")


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in file `path` with `overrides` ("section.key=value") applied; RecipeError names every problem."""
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        values = {} if values is None else values
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such recipe; give the path of a YAML file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read as a recipe: {error}"]) from error
    except yaml.YAMLError as error:
        raise RecipeError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    problems: list[str] = []
    for override in overrides or []:
        _with_override(values, override, problems)
    good = _checked(values, Recipe, "", problems)
    recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), good))
    assert isinstance(recipe, Recipe)
    if recipe.run.dir is None:
        recipe.run.dir = str(Path("runs") / path.stem)
    problems += validate(recipe, unusable={key_of(text) for text in problems})
    if problems:
        raise RecipeError(problems)
    return recipe


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ: {"section.key": (old, new)}."""
    result = {}
    for section in fields(Recipe):
        before, after = getattr(old, section.name), getattr(new, section.name)
        for key in fields(before):
            values = getattr(before, key.name), getattr(after, key.name)
            if values[0] != values[1]:
                result[f"{section.name}.{key.name}"] = values
    return result


def flat(recipe: Recipe) -> dict[str, Any]:
    """{"section.key": value}, lists and mappings as text: what trackers take as hyperparameters."""
    sections = {section.name: vars(getattr(recipe, section.name)) for section in fields(Recipe)}
    plain = (bool, int, float, str)
    return {
        f"{section}.{key}": value if isinstance(value, plain) else str(value)
        for section, values in sections.items()
        for key, value in values.items()
    }


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `read_recipe` reads back to an equal recipe."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))

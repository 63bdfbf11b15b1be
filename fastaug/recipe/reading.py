"""Recipes from YAML and the command line: strict, every problem at once. Nothing here imports torch.

`strict_yaml.py` reads the text, the pydantic dataclasses of `schema.py` check each value, `rules.py` the values
together. What pydantic finds is told here in one line each: key, value, remedy.
"""

import difflib
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ValidationError
from ruamel.yaml.error import YAMLError

from fastaug.errors import RecipeError
from fastaug.recipe.key_table import BOUNDS, choices, number_in_words, type_name
from fastaug.recipe.rules import key_of, validate
from fastaug.recipe.schema import SCHEMA, Recipe
from fastaug.recipe.strict_yaml import parse_yaml, write_yaml

Section = TypeVar("Section")
_BROKEN_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def _unknown(name: str, key: str, schema: type) -> str:
    known = [field.name for field in fields(schema)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = f"; did you mean {close[0]!r}?" if close else ""
    return f"{name}: unknown key{near} (known: {', '.join(known)})"


def _told(name: str, whole: Any, error: Any, schema: type) -> str:
    """What pydantic found wrong with key `name` and its value `whole`, or with an element of that, in a line."""
    kind, value, context, key = error["type"], error["input"], error.get("ctx", {}), str(error["loc"][0])
    if kind == "unexpected_keyword_argument":
        return _unknown(name, key, schema)
    if kind in _BROKEN_BOUNDS:
        bound = context[_BROKEN_BOUNDS[kind]]
        return f"{name}: {type(bound)(value)} must be {BOUNDS[_BROKEN_BOUNDS[kind]]} {number_in_words(bound)}"
    if kind in ("too_short", "too_long"):
        return f"{name}: {whole} must have {context.get('min_length', context.get('max_length'))} numbers"
    if kind == "finite_number":
        return f"{name}: {value} is not a finite number"
    if kind == "value_error":
        return f"{name}: {context['error']}"
    expected = get_type_hints(schema)[key]
    if kind == "literal_error":
        return f"{name}: {value!r} is not one of {', '.join(choices(expected))}"
    hint = "; write it without quotes" if _fits_without_quotes(key, whole, schema) else ""
    return f"{name}: expected {type_name(expected)}, got {whole!r} ({type(whole).__name__}){hint}"


def _fits_without_quotes(key: str, value: Any, schema: type) -> bool:
    if not isinstance(value, str):
        return False
    try:
        schema(**{key: parse_yaml(value)})
    except (YAMLError, ValidationError):
        return False
    return True


def _built(schema: type[Section], values: Any, prefix: str, problems: list[str]) -> Section:
    """The dataclass `schema` from a mapping; what does not fit is added to `problems` and takes its default."""
    if not isinstance(values, dict):
        where = prefix.rstrip(".") or "the recipe"
        problems.append(f"{where}: expected a mapping of keys, got {values!r} ({type(values).__name__})")
        return schema()
    good, types_of = {}, get_type_hints(schema)
    for key, value in ((str(key), value) for key, value in values.items()):
        if is_dataclass(types_of.get(key)):
            good[key] = _built(types_of[key], value, f"{prefix}{key}.", problems)
        elif isinstance(value, str) and ("${" in value or value == "???"):
            refers = "refers to other keys, which recipes do not do; write the value itself"
            problems.append(f"{prefix}{key}: {value!r} {refers}")
        else:
            good[key] = value
    try:
        return schema(**good)
    except ValidationError as error:
        errors = [(str(each["loc"][0]), each) for each in error.errors(include_url=False)]
        problems += dict.fromkeys(_told(f"{prefix}{key}", good[key], each, schema) for key, each in errors)
        bad = {key for key, _ in errors}
        return schema(**{key: value for key, value in good.items() if key not in bad})


def _with_override(values: Any, override: str, problems: list[str]) -> None:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        problems.append(f"{override!r}: an override is written section.key=value")
        return
    try:
        value = parse_yaml(text)
    except YAMLError as error:
        problems.append(f"{path}: {text!r} is not a YAML value ({' '.join(str(error).split())})")
        return
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {}) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values[last] = value
    else:
        problems.append(f"{path}: {'.'.join(parents)} is not a section")


def _read_file(path: Path) -> Any:
    """The value of a YAML file, {} when it is empty; RecipeError when it is none."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such recipe; give the path of a YAML file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read as a recipe: {error}"]) from error
    except YAMLError as error:
        raise RecipeError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from error
    return {} if values is None else values


def _on_its_base(values: Any, path: Path) -> Any:
    """`values` of the recipe at `path` over those of the file that its `base` names, key by key."""
    if not isinstance(values, dict) or "base" not in values:
        return values
    name = values.pop("base")
    if not isinstance(name, str):
        raise RecipeError([f"base: expected the path of a YAML file, got {name!r} ({type(name).__name__})"])
    base = _read_file(path.parent / name)
    if not isinstance(base, dict):
        raise RecipeError([f"base: {name} is not a mapping of sections"])
    if "base" in base:
        raise RecipeError([f"base: {name} has a base of its own, {base['base']!r}; write its keys into {name}"])
    for section, keys in values.items():
        both = isinstance(keys, dict) and isinstance(base.get(section), dict)
        base[section] = base[section] | keys if both else keys
    return base


def _check_schema(values: Any, path: Path) -> None:
    """Takes the schema's number out of `values`; RecipeError when a later version wrote it."""
    number = values.pop("schema", SCHEMA) if isinstance(values, dict) else SCHEMA
    if type(number) is not int or number < 1:
        raise RecipeError([f"schema: {number!r} is not the number of a schema; leave it out"])
    if number > SCHEMA:
        later = f"was written by a later fastaug (this one reads schema {SCHEMA}); update fastaug"
        raise RecipeError([f"schema: {number} of {path} {later}"])


def read_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in file `path` with `overrides` ("section.key=value") applied; RecipeError names every problem."""
    path = Path(path)
    values = _on_its_base(_read_file(path), path)
    _check_schema(values, path)
    problems: list[str] = []
    for override in overrides or []:
        _with_override(values, override, problems)
    recipe = _built(Recipe, values, "", problems)
    if recipe.run.dir is None:
        recipe.run.dir = str(Path("runs") / path.stem)
    if _turns_off_meta(values):
        recipe.meta = type(recipe.meta)()
    problems += validate(recipe, unusable={key_of(text) for text in problems})
    if problems:
        raise RecipeError(problems)
    return recipe


def _turns_off_meta(values: Any) -> bool:
    """Whether `meta.learn: []` is written out: the control of a recipe that learns, so that other keys may stay."""
    meta = values.get("meta") if isinstance(values, dict) else None
    return isinstance(meta, dict) and meta.get("learn") == []


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
    """The resolved recipe as YAML that `read_recipe` reads back to an equal recipe, with the number of its schema."""
    return write_yaml({"schema": SCHEMA, **asdict(recipe)})

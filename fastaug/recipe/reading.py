"""Recipes from YAML and the command line: strict, every problem at once. Nothing here imports torch.

`strict_yaml.py` reads the text, the pydantic dataclasses of `schema.py` check each value, `rules.py` the values
together. What pydantic finds is told here in one line each: key, value, remedy.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_type_hints

from pydantic import ValidationError
from ruamel.yaml.error import YAMLError

from fastaug.errors import RecipeError
from fastaug.recipe import auto_values
from fastaug.recipe.key_table import BOUNDS, choices, length_limits, number_in_words, type_name
from fastaug.recipe.operation_files import check_operations
from fastaug.recipe.policy_file import read_policy_file
from fastaug.recipe.policy_names import parse_policy
from fastaug.recipe.rules import key_of, validate
from fastaug.recipe.schema import FOLLOWING, SCHEMA, UNLEARNED_KEYS, Meta, Model, Recipe
from fastaug.recipe.shipped import find_recipe
from fastaug.recipe.strict_yaml import parse_yaml, write_yaml
from fastaug.recipe.subpolicy_files import read_subpolicies

Section = TypeVar("Section")
Override = str | tuple[str, Any]  # "section.key=value" of a command line, ("section.key", value) of Python
LARGEST = 2**15  # bytes of a recipe, characters of an override: read in less than a second
_TOO_LARGE = f"at most {LARGEST:,} are read; leave out what is no setting"
_NO_TEXT = "a key that cannot be encoded as UTF-8; write it anew"
DEEPEST = 16  # dots in an override's path
LONGEST_SHOWN = 200  # characters of a value in a message
MOST_TOLD = 30  # problems of one section
PREFIX_SINCE = 3  # the schema that has optim.warmup_prefix; before, cosine began with the training
EVIDENCE_SINCE = 4  # the schema in which a policy learns from evidence by default; before, by score function
EXPLORE_SINCE = 5  # the schema that has meta.explore; before, all updates drew from the policy as it had become
# Overrides under which a recipe is built whole, without the weights of files that it begins with, and sends nothing.
UNTRAINED = (
    *("model.initial_checkpoint=null", "model.checkpoint_keys=null", "run.trackers=[]", "train.parallel=ddp"),
    f"model.checkpoint_fit={Model().checkpoint_fit}",
)
_BROKEN_BOUNDS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def _short(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def _in_line(key: str) -> str:
    """A key in a message of one line."""
    return key if key.isprintable() else repr(key)


def _unknown(name: str, key: str, schema: type) -> str:
    known = [field.name for field in fields(schema)]
    close = difflib.get_close_matches(key[:LONGEST_SHOWN], known, n=1, cutoff=0.5)
    near = f"; did you mean {close[0]!r}?" if close else ""
    return f"{_in_line(name[:LONGEST_SHOWN])}: unknown key{near} (known: {', '.join(known)})"


def _told(name: str, whole: Any, error: Any, schema: type) -> str:
    """What pydantic found wrong with key `name` and its value `whole`, or with an element of that, in a line."""
    kind, value, context, key = error["type"], error["input"], error.get("ctx", {}), str(error["loc"][0])
    if kind == "unexpected_keyword_argument":
        return _unknown(name, key, schema)
    if kind in _BROKEN_BOUNDS:
        bound = context[_BROKEN_BOUNDS[kind]]
        return f"{name}: {type(bound)(value)} must be {BOUNDS[_BROKEN_BOUNDS[kind]]} {number_in_words(bound)}"
    expected = get_type_hints(schema, include_extras=True)[key]
    if kind in ("too_short", "too_long"):
        return f"{name}: {_short(whole)} must have {_length(expected)}"
    if kind == "finite_number":
        return f"{name}: {value} is not a finite number"
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind == "literal_error":
        return f"{name}: {_short(value)} is not one of {', '.join(choices(expected))}"
    hint = "; write it without quotes" if _fits_without_quotes(key, whole, schema) else ""
    return f"{name}: expected {type_name(expected)}, got {_short(whole)} ({type(whole).__name__}){hint}"


def _length(expected: Any) -> str:
    """How long a list of this type has to be, in words."""
    low, high = length_limits(expected)
    return f"{low} numbers" if low == high else f"at most {high} elements"


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
        problems.append(f"{where}: expected a mapping of keys, got {_short(values)} ({type(values).__name__})")
        return schema()
    good, types_of = {}, get_type_hints(schema)
    for key, value in ((str(key), value) for key, value in values.items()):
        if not _is_text(key):  # pydantic cannot name it
            problems.append(f"{prefix}{_short(key)}: {_NO_TEXT}")
        elif is_dataclass(types_of.get(key)):
            good[key] = _built(types_of[key], value, f"{prefix}{key}.", problems)
        elif isinstance(value, str) and ("${" in value or value == "???"):
            refers = "refers to other keys, which recipes do not do; write the value itself"
            problems.append(f"{prefix}{key}: {_short(value)} {refers}")
        else:
            good[key] = value
    try:
        return schema(**good)
    except ValidationError as error:
        errors = _without_other_members([(str(each["loc"][0]), each) for each in error.errors(include_url=False)])
        told = dict.fromkeys(_told(f"{prefix}{key}", good[key], each, schema) for key, each in errors[:MOST_TOLD])
        more = len(errors) - MOST_TOLD
        problems += [*told, *([f"{prefix.rstrip('.') or 'the recipe'}: {more} more problems"] if more > 0 else [])]
        bad = {key for key, _ in errors}
        return schema(**{key: value for key, value in good.items() if key not in bad})


def _without_other_members(errors: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Errors by key, without those of members of a union that the value is not of: a list is not also told no text."""
    # Of an element of a plain list the second place is its number, of a member of a union its type.
    whole = [len(each["loc"]) == 2 and isinstance(each["loc"][1], str) for _, each in errors]
    deeper = {key for (key, _), is_whole in zip(errors, whole, strict=True) if not is_whole}
    return [pair for pair, is_whole in zip(errors, whole, strict=True) if not (is_whole and pair[0] in deeper)]


def _with_override(values: Any, override: str, problems: list[str]) -> None:
    path, equals, text = override.partition("=")
    if not _is_text(path):
        problems.append(f"{_short(path)}: {_NO_TEXT}")
        return
    if not equals or not _is_key(path):
        problems.append(f"{_short(override)}: an override is written section.key=value")
        return
    if len(text) > LARGEST:
        problems.append(f"{_in_line(path)}: a value of {len(text):,} characters; {_TOO_LARGE}")
        return
    try:
        value = parse_yaml(text)
    except YAMLError as error:
        problems.append(f"{_in_line(path)}: {_short(text)} is not a YAML value ({' '.join(str(error).split())})")
        return
    _put(values, path, value, problems)


def _with_setting(values: Any, path: str, value: Any, problems: list[str]) -> None:
    """Puts a value of Python at `path`: a mapping of a whole section key by key, paths and tuples as YAML has them."""
    if not _is_text(path):
        problems.append(f"{_short(path)}: {_NO_TEXT}")
    elif not _is_key(path):
        problems.append(f'{_short(path)}: a setting is written {{"section.key": value}}')
    elif isinstance(value, Mapping) and "." not in path:
        for key, inner in value.items():
            _put(values, f"{path}.{key}", _plain(inner), problems)
    else:
        _put(values, path, _plain(value), problems)


def _plain(value: Any) -> Any:
    """A value of Python in the types that YAML has; what it has none for stays, and is refused as another type."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _is_key(path: str) -> bool:
    return all(path.split(".")) and path.count(".") < DEEPEST


def _is_text(key: str) -> bool:
    """Whether a key can be encoded as UTF-8: bytes of a command line that are none become surrogates, which cannot."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _put(values: Any, path: str, value: Any, problems: list[str]) -> None:
    """Sets what `path`, section.key, names in nested mappings."""
    *parents, last = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {}) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values[last] = value
    else:
        problems.append(f"{_in_line(path)}: {_in_line('.'.join(parents))} is not a section")


def _read_file(path: Path, largest: int = LARGEST) -> Any:
    """The value of a YAML file of `largest` bytes or less, {} when it is empty; RecipeError when it is none."""
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise RecipeError([f"{path}: larger than a recipe; {_TOO_LARGE}"])
        values = parse_yaml(content.decode("utf-8"))
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such recipe; give the path of a YAML file"]) from None
    except (OSError, ValueError) as error:  # no UTF-8, or no path
        reason = f"cannot be read as a recipe: {error}; give the path of a YAML file in UTF-8"
        raise RecipeError([f"{path}: {reason}"]) from error
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


def _take_schema(values: Any, path: Path, unnumbered: int) -> int:
    """Takes the schema's number out of `values`, `unnumbered` where there is none; RecipeError if a later version's."""
    number = values.pop("schema", unnumbered) if isinstance(values, dict) else unnumbered
    if type(number) is not int or number < 1:
        raise RecipeError([f"schema: {number!r} is not the number of a schema; leave it out"])
    if number > SCHEMA:
        later = f"was written by a later fastaug (this one reads schema {SCHEMA}); update fastaug"
        raise RecipeError([f"schema: {number} of {path} {later}"])
    return number


def _in_this_schema(values: Any, number: int) -> None:
    """Writes into `values` what a recipe of schema `number` meant by leaving out a key."""
    if number < PREFIX_SINCE and isinstance(values, dict):
        optim = values.setdefault("optim", {})
        if isinstance(optim, dict):
            optim.setdefault("warmup_prefix", False)
    meta = values.get("meta") if isinstance(values, dict) else None
    if number < EVIDENCE_SINCE and isinstance(meta, dict):
        _by_score(meta)


def _leave_unexplored(values: Any, number: int) -> None:
    """Writes the `explore` of then into the section `meta` of schema `number`, once overrides have said what learns."""
    meta = values.get("meta") if isinstance(values, dict) else None
    if number >= EXPLORE_SINCE or not isinstance(meta, dict):
        return
    if _moves(meta) and meta.get("probabilities", "evidence") == "evidence":
        meta.setdefault("explore", False)


def _moves(meta: dict[str, Any]) -> bool:
    """Whether the probabilities of a policy learn under the section `meta`."""
    moves = not meta.get("frozen") and meta.get("reuse") is None and meta.get("learn_probabilities", True)
    learn = meta.get("learn")
    return moves and isinstance(learn, list) and "policy" in learn


def _by_score(meta: dict[str, Any]) -> None:
    """Writes the default `score` of then into the section `meta`, or takes it out where probabilities do not learn."""
    if _moves(meta):
        meta.setdefault("probabilities", "score")
    elif meta.get("probabilities") == "score":
        del meta["probabilities"]


def read_untrained(path: str | Path, overrides: Sequence[Override]) -> Recipe:
    """The recipe under `overrides`, UNTRAINED among them, for a network whose weights come from elsewhere."""
    recipe = read_recipe(path, overrides)
    return replace(recipe, model=replace(recipe.model, pretrained=False))


def as_override(key: str, value: str) -> str:
    """key=value for a command line, in quotes where YAML would read the text as something else."""
    try:
        plain = parse_yaml(value) == value
    except YAMLError:
        plain = False
    return f"{key}={value if plain else json.dumps(value)}"


def read_recipe(path: str | Path, overrides: Sequence[Override] | None = None) -> Recipe:
    """The recipe in file `path`, or the shipped one of that name, with `overrides`; RecipeError names every problem.

    What `auto` stands for is said on the screen.
    """
    path = find_recipe(path)
    recipe = _read(_on_its_base(_read_file(path), path), path, overrides or [], SCHEMA, goes_on=True)[0]
    if "policy" in recipe.meta.learn:
        check_operations(recipe.meta)
    fixed = parse_policy(recipe.augment.aa)
    if fixed is not None and fixed.path is not None:
        read_subpolicies(fixed.path)
    if recipe.meta.reuse is not None:
        _check_reused(recipe.meta.reuse)
    return recipe


def _check_reused(path: str) -> None:
    """RecipeError where what meta.reuse names is no policy file that this version reads."""
    try:
        read_policy_file(Path(path))
    except RecipeError as error:
        raise RecipeError([f"meta.reuse: {problem}" for problem in error.problems]) from None


def read_stored(path: Path) -> tuple[Recipe, int]:
    """The recipe that a run was begun with, and the number of its schema; 0.1.0 wrote none."""
    return _read(_read_file(path, 8 * LARGEST), path, [], 1)  # resolved, it is longer than what it was read from


def recipe_of(values: dict[str, Any], path: Path) -> Recipe:
    """The recipe whose resolved values, with the number of their schema, stand in the file `path`."""
    return _read(values, path, [], 1)[0]


def as_begun(recipe: Recipe, schema: int) -> Recipe:
    """`recipe` as a run goes on with it that was begun under `schema`: keys that it had not keep what was done then."""
    return replace(recipe, optim=replace(recipe.optim, warmup_prefix=False)) if schema < PREFIX_SINCE else recipe


def _leave_as_begun(meta: dict[str, Any], folder: Path) -> None:
    """Writes into the section `meta` what it leaves open and the run in `folder` began with under other defaults.

    Nothing where the section names other probabilities: it is another recipe, which the run folder refuses.
    """
    try:
        before, schema = read_stored(folder / "recipe.yaml")
    except RecipeError:  # there is none, or one that the run folder refuses
        return
    begun = (folder / "result.json").exists() or any((folder / "checkpoints").glob("step-*"))
    same = meta.get("probabilities") in (None, before.meta.probabilities)
    if begun and same and schema < EVIDENCE_SINCE:
        for key in ("probabilities", *FOLLOWING):
            meta.setdefault(key, getattr(before.meta, key))
        auto_values.tell(f"meta.probabilities: {before.meta.probabilities}, as the run in {folder} was begun")
    if begun and same and schema < EXPLORE_SINCE and before.meta.by_evidence and "explore" not in meta:
        meta["explore"] = False
        auto_values.tell(f"meta.explore: false, as the run in {folder} was begun")


def _read(
    values: Any, path: Path, overrides: Sequence[Override], unnumbered: int, *, goes_on: bool = False
) -> tuple[Recipe, int]:
    """The recipe of the values in file `path`, and the number of their schema.

    `goes_on`: it is for a run, which may have begun in its folder.
    """
    number = _take_schema(values, path, unnumbered)
    _in_this_schema(values, number)
    problems: list[str] = []
    for override in overrides:
        if isinstance(override, str):
            _with_override(values, override, problems)
        else:
            _with_setting(values, *override, problems)
    _leave_unexplored(values, number)
    said, unresolved = auto_values.resolve(values, _network_name(values))
    problems += unresolved
    if said is not None:
        auto_values.tell(said)
    recipe = _built(Recipe, values, "", problems)
    if recipe.run.dir is None:
        recipe.run.dir = str(Path("runs") / path.stem)
    if goes_on and recipe.meta.by_evidence:
        _leave_as_begun(values["meta"], Path(recipe.run.dir))
        recipe.meta = _built(Meta, values["meta"], "meta.", [])  # its problems are told already
    if _turns_off_meta(values):
        recipe.meta = type(recipe.meta)(**{key: getattr(recipe.meta, key) for key in UNLEARNED_KEYS})
    problems += validate(recipe, unusable={key_of(text) for text in problems})
    if problems:
        raise RecipeError(problems)
    return recipe, number


def _network_name(values: Any) -> str:
    """What `model.name` of a recipe's values will be; the default where it is no text, which is told later."""
    model = values.get("model") if isinstance(values, dict) else None
    name = model.get("name") if isinstance(model, dict) else None
    return name if isinstance(name, str) else Model().name


def _turns_off_meta(values: Any) -> bool:
    """Whether `meta.learn: []` is written out: the control of a recipe that learns, so that other keys may stay.

    What is reused then comes with its own settings, and meta.frozen still adds the meta split to the training split.
    """
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


def to_yaml(recipe: Recipe, schema: int = SCHEMA) -> str:
    """The resolved recipe as YAML that is read back to an equal recipe, with the schema under which its run began."""
    return write_yaml({"schema": schema, **asdict(recipe)})

"""A list in a file of YAML or JSON that a recipe names, of limited size; nothing in it is executed."""

import json
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from fastaug.atomic_files import open_regular
from fastaug.errors import RecipeError
from fastaug.recipe.strict_yaml import parse_yaml


def read_list(path: Path, where: str, *, most: int, of: str, largest: int) -> list[Any]:
    """The list in a file, 1 to `most` entries and at most `largest` bytes.

    RecipeError, with `where` for the key and the file and `of` for what the entries are; FileNotFoundError is the
    caller's, who may know other names.
    """
    try:
        with open_regular(path) as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise RecipeError([f"{where}: larger than {largest:,} bytes; leave out what is none of the {of}"])
        text = content.decode("utf-8")
        values = json.loads(text, object_pairs_hook=json_object) if path.suffix == ".json" else parse_yaml(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError([f"{where}: cannot be read: {error}; give a YAML or JSON file in UTF-8"]) from error
    except YAMLError as error:
        raise RecipeError([f"{where}: is not strict YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(values, list) or not 1 <= len(values) <= most:
        found = f"{len(values)} entries" if isinstance(values, list) else type(values).__name__
        raise RecipeError([f"{where}: must be a list of 1 to {most:,} {of}, found {found}"])
    return values


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys may stand only once, as those of a YAML mapping; ValueError names one that does not."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r:.100} stands twice")
    return found

"""policy.json: what a run has learned, in plain numbers, to be taken to other runs, networks, data sets and loops.

    {"fastaug_policy": 1, "version": "0.1.0", "commit": null, "step": 940, "data": {"img_size": 28, "mean": [...], ...},
     "parts": {"policy": {"kind": "policy", "settings": {...}, "values": {"policy.logits": [[...]], ...},
                          "start": {...}, "summary": {...}}},
     "tables": ["weights"]}

`settings` are what the values mean nothing without (operations in full), `values` the numbers by parameter, `start`
those that learning began with, `summary` the values for people, `tables` parts whose numbers belong to single images:
they stay in the checkpoints. A policy file is a stranger's: it is data, checked here and where its parts are built, and
nothing of it is ever executed or imported. Needs no torch.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastaug.atomic_files import open_regular
from fastaug.errors import RecipeError
from fastaug.recipe.list_file import json_object

FILE = "policy.json"
VERSION = 1  # raise it when what is written means something else
AS_WRITTEN, SOUND = "take the file as a run wrote it", "take the file of a run that ended well"
LARGEST = 32 << 20  # bytes
DEEPEST = 20  # lists and objects in each other
LARGEST_NUMBER = 3e38  # float32's, about
MOST_DIGITS = 1000  # of a whole number: Python reads longer ones as it is set to
_NEEDED = ("parts", "data")
_PIECE = {"kind": str, "settings": dict, "values": dict}


class Piece(NamedTuple):
    """What one learned part left: its name in meta.learn, its settings, and its numbers by parameter name.

    `start`: the numbers where learning began; None where nothing learned.
    """

    kind: str
    settings: Mapping[str, Any]
    values: Mapping[str, Any]
    start: Mapping[str, Any] | None = None


class PolicyFile(NamedTuple):
    """A policy file that has been checked: pieces by the part's name, parts with tables, what is noted of the data."""

    path: Path
    pieces: Mapping[str, Piece]
    tables: tuple[str, ...]
    data: Mapping[str, Any]


def read_policy_file(path: Path) -> PolicyFile:
    """The policy file at `path`, or in the run folder `path`; RecipeError says which key of it is wrong and why."""
    if path.is_dir():
        if not (path / FILE).exists():
            raise RecipeError(
                [f"{path}: has no {FILE}; name the folder of a run that learned something, or start that run's command "
                 "again, which writes it"]
            )  # fmt: skip
        path = path / FILE
    try:
        return _checked(path, _parsed(path))
    except _Refused as refused:
        raise RecipeError([f"{path}: {refused}"]) from None


class _Refused(ValueError):
    """What is wrong with a policy file: key, value, remedy."""


def _parsed(path: Path) -> dict[str, Any]:
    """The JSON object in the file."""
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _Refused(f"cannot be read: {error}; give a run folder or its {FILE}") from None
    if len(content) > LARGEST:
        raise _Refused(f"is larger than {LARGEST >> 20} MiB; this is no policy file of fastaug")
    try:
        values = json.loads(content, parse_constant=_no_number, parse_int=_whole, object_pairs_hook=_once)
    except _Refused:
        raise
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise _Refused(f"is no JSON, or was cut off: {reason}; copy it again") from None
    if not isinstance(values, dict) or "fastaug_policy" not in values:
        raise _Refused("fastaug_policy: is missing: this is no policy file of fastaug; name one that a run wrote")
    return values


def _no_number(text: str) -> Any:
    raise _Refused(f"{text} stands in it, which is no number to augment by; {SOUND}")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _Refused(f"a number of {len(text):,} digits, {text[:20]}..., stands in it: it is out of range; {SOUND}")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return json_object(pairs)
    except ValueError as error:
        raise _Refused(f"{error}; {AS_WRITTEN}") from None


def _checked(path: Path, values: dict[str, Any]) -> PolicyFile:
    version = values["fastaug_policy"]
    if type(version) is not int or version != VERSION:
        raise _Refused(
            f"fastaug_policy: {_short(version)} is not the version that this fastaug reads, {VERSION}; "
            "use the fastaug that wrote it"
        )
    for key in _NEEDED:
        if not isinstance(values.get(key), dict):
            raise _Refused(f"{key}: must be an object, found {_short(values.get(key))}; {AS_WRITTEN}")
    tables = values.get("tables", [])
    if not isinstance(tables, list) or not all(isinstance(name, str) for name in tables):
        raise _Refused(f"tables: must be a list of names, found {_short(tables)}; {AS_WRITTEN}")
    pieces = {name: _piece(name, piece) for name, piece in values["parts"].items()}
    return PolicyFile(path, pieces, tuple(tables), values["data"])


def _piece(name: str, piece: Any) -> Piece:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name) is None:
        raise _Refused(f"parts: {_short(name)} is no name of a learned part; {AS_WRITTEN}")
    for key, kind in _PIECE.items():
        found = piece.get(key) if isinstance(piece, dict) else None
        if not isinstance(found, kind):
            wanted = {str: "a text", dict: "an object"}[kind]
            raise _Refused(f"parts.{name}.{key}: must be {wanted}, found {_short(found)}; {AS_WRITTEN}")
    if not isinstance(piece.get("summary", {}), dict):
        raise _Refused(f"parts.{name}.summary: must be an object, found {_short(piece['summary'])}; {AS_WRITTEN}")
    given = ((key, piece.get(key, {})) for key in ("settings", "values", "start", "summary"))
    for key, value in (pair for where, inner in given for pair in _numbers(where, inner)):
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST_NUMBER:
            raise _Refused(f"parts.{name}.{key}: {_short(value)} is out of range; {SOUND}")
        if not key.startswith("settings") and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise _Refused(f"parts.{name}.{key}: {_short(value)} is no number; {AS_WRITTEN}")
    start = piece.get("start")
    if start is not None and (not isinstance(start, dict) or start.keys() != piece["values"].keys()):
        raise _Refused(f"parts.{name}.start: must have the names of values; {AS_WRITTEN}")
    return Piece(piece["kind"], piece["settings"], piece["values"], start)


def _numbers(key: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything in nested lists and objects, each with where it stands."""
    if depth > DEEPEST:
        raise _Refused(f"{_short(key)}: more than {DEEPEST} lists in each other; {AS_WRITTEN}")
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(f"{key}.{name[:100]}", inner, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _numbers(f"{key}[{number}]", inner, depth + 1)
    else:
        yield key, value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

"""The table of all keys that `train.py --keys` prints: type, default, limits or choices, help."""

import difflib
import json
import textwrap
import types
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastaug.errors import RecipeError
from fastaug.recipe.schema import FOLLOWING, META_PARTS, Recipe

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_WIDTH, _INDENT = 120, "    "


def type_name(expected: Any) -> str:
    """A type as users read it: `list of float`, `int or null`, `mapping`."""
    origin, parts = get_origin(expected), get_args(expected)
    if origin is Annotated:
        return type_name(parts[0])
    if origin in (types.UnionType, Union):
        return " or ".join(type_name(part) for part in parts)
    if origin is list:
        return f"list of {type_name(parts[0])}"
    if origin is Literal:
        return "str"
    return {types.NoneType: "null", dict: "mapping"}.get(origin or expected, getattr(expected, "__name__", ""))


def choices(expected: Any) -> tuple[str, ...]:
    """The values that a type names one by one, also for the elements of a list; () when it names none."""
    if get_origin(expected) is Literal:
        return get_args(expected)
    return next((named for member in get_args(expected) if (named := choices(member))), ())


def _bounds(expected: Any) -> Iterator[str]:
    """Each bound of a type in words; those of a list are of its elements."""
    if get_origin(expected) is Annotated:
        limits = [each for extra in expected.__metadata__ for each in getattr(extra, "metadata", [extra])]
        for name, word in BOUNDS.items():
            yield from (f"{word} {number_in_words(getattr(each, name))}" for each in limits if hasattr(each, name))
        yield from (f"{each.min_length} numbers" for each in limits if hasattr(each, "min_length"))
    for part in get_args(expected):
        yield from _bounds(part)


def length_limits(expected: Any) -> tuple[int, int | None]:
    """The smallest and the largest length of a list of this type."""
    if get_origin(expected) is Annotated:
        limits = [each for extra in expected.__metadata__ for each in getattr(extra, "metadata", [extra])]
        low = [each.min_length for each in limits if hasattr(each, "min_length")]
        high = [each.max_length for each in limits if hasattr(each, "max_length")]
        if low or high:
            return (*(low or [0])[:1], *(high or [None])[:1])
    return next((found for part in get_args(expected) if (found := length_limits(part)) != (0, None)), (0, None))


def number_in_words(value: float) -> str:
    """A bound without needless digits."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _limits(name: str, expected: Any) -> str:
    if name == "meta.learn":  # checked by a function, not by its type
        return ", ".join((*META_PARTS, "module:Class"))
    return ", ".join(choices(expected)) or ", ".join(_bounds(expected))


def _rows() -> dict[str, tuple[str, str, str, str, str]]:
    """{"section.key": (key, type, default, limits or choices, help)} of the whole recipe, in order."""
    rows = {}
    for part in fields(Recipe):
        schema: Any = part.type
        usual = schema()
        for name, expected in get_type_hints(schema, include_extras=True).items():
            key, begun = f"{part.name}.{name}", getattr(usual, name)
            if part.name == "meta" and name in FOLLOWING:  # what is left open, before it follows from other keys
                begun = FOLLOWING[name][0]
            default = json.dumps(begun)
            text = schema.__pydantic_fields__[name].description
            rows[key] = (key, type_name(expected), default, _limits(key, expected), text)
    return rows


def describe(wanted: str = "") -> str:
    """The table of all keys, of one section, or of one section.key; RecipeError when there is no such one."""
    rows = _rows()
    chosen = [row for key, row in rows.items() if not wanted or key == wanted or key.startswith(f"{wanted}.")]
    if not chosen:
        sections = [part.name for part in fields(Recipe)]
        known = [key for key in rows if key.partition(".")[0] == wanted.partition(".")[0]] or sections
        close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
        near = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError([f"--keys: unknown {wanted!r}{near} (known: {', '.join(known)})"])
    return "\n".join(_aligned(chosen)) + "\n"


def _aligned(rows: list[tuple[str, str, str, str, str]]) -> Iterator[str]:
    """A line of key, type, default and limits for each row, its help below."""
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, limits, text in rows:
        head = "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))
        lines = textwrap.wrap(limits, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
        yield from lines or [head.rstrip()]
        yield from textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)

"""The recipe and the table that a conversion prints."""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from fastaug.recipe.schema import Recipe
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.recipe.timm_script.arguments import Argument, all_arguments
from fastaug.recipe.timm_script.conversion import Conversion, Row

WIDTH = 120


def recipe_text(made: Conversion, file: str) -> str:
    """The recipe that `file` will hold: its head, then the keys section by section."""
    lines = list(_head(made, file))
    for section in fields(Recipe):
        keys = {
            name.partition(".")[2]: value for name, value in made.keys.items() if name.startswith(f"{section.name}.")
        }
        order = [field.name for field in fields(section.type)]  # type: ignore[arg-type]
        if keys:
            lines.append(f"{section.name}:")
            lines += [f"  {name}: {yaml_value(keys[name])}" for name in order if name in keys]
    return "\n".join(lines) + "\n"


def yaml_value(value: Any) -> str:
    """A value on one line, as people write it where that reads back to the same."""
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and parse_yaml(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _head(made: Conversion, file: str) -> Iterator[str]:
    source = made.source
    yield from _said("", f"{made['model']} trained as timm's training script trains it, made by `fastaug from-timm`.")
    command = f"accelerate launch --num_processes {source.processes} fastaug/train.py {file}"
    yield f"# Command:   {' '.join([*source.environment, command])}"  # on one line, to be copied
    micro = f"{source.processes} processes, {made['batch_size']} images in each at a time"
    fewer = "On fewer processes raise train.accumulate, so that BatchNorm sees as many images."
    yield from _said("Hardware:  ", f"{micro}, as with timm. {fewer}")
    yield from _said("Result:    ", "not yet measured here.")
    yield from _said("From:      ", source.text)
    for row in lacking(made):
        yield from _said("Differs:   ", f"{_written(row)}: {row.note}.")


def _said(name: str, text: str) -> Iterator[str]:
    behind = "# " + " " * len(name)
    wrapped = textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"# {name}",
        subsequent_indent=behind,
        break_long_words=False,
        break_on_hyphens=False,
    )
    yield from wrapped


def lacking(made: Conversion) -> list[Row]:
    """The arguments that have no counterpart."""
    return [row for row in made.rows.values() if row.outcome == "lacks"]


def _written(row: Row) -> str:
    """The argument as it is given: --mixup 0.2; and where it is timm's default, that."""
    words = [row.argument.flag] + ([] if row.argument.kind == "flag" else [_plain(row.value)])
    return " ".join(words) + ("" if row.given else " (timm's default)")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "''" if value == "" else str(value)


def table(made: Conversion) -> str:
    """A line for each argument: what it became, and why where it became nothing; the rest counted by name."""
    shown = [row for row in made.rows.values() if row.shows]
    width = min(44, max(len(_written(row)) for row in shown))
    lines = [
        line
        for row in shown
        for line in textwrap.wrap(
            _outcome(row), WIDTH, initial_indent=f"{_written(row):<{width}}  ", subsequent_indent=" " * (width + 2)
        )
    ]
    quiet = [row.argument.name for row in made.rows.values() if not row.shows and not row.argument.until]
    lines += textwrap.wrap(
        f"{len(quiet)} more are not given and without effect, timm's default being ours too, or off: "
        f"{', '.join(quiet)}",
        WIDTH,
    )
    return "\n".join(lines)


def _outcome(row: Row) -> str:
    keys = ", ".join(f"{key}: {yaml_value(value)}" for key, value in row.keys.items())
    note = f" ({row.note})" if row.note else ""
    if row.outcome == "key":
        return f"{keys}{note}"
    if row.outcome == "idle":
        return f"without effect: {row.note}"
    return f"no counterpart: {row.note}" + (f"; {keys}" if keys else "")


def as_json(made: Conversion) -> dict[str, Any]:
    """Processes, keys and rows, for programs."""
    rows = {
        name: {"value": row.value, "given": row.given, "outcome": row.outcome, "keys": row.keys, "note": row.note}
        for name, row in made.rows.items()
    }
    return {"processes": made.source.processes, "recipe": made.keys, "arguments": rows}


def arguments_page() -> str:
    """The table of docs/from_timm.md: every argument of timm's script, its default, and what it is here."""
    rows = [
        f"| {_options(argument)} | {_default(argument)} | {_meaning(argument)} |"
        for argument in all_arguments().values()
    ]
    return "\n".join(["| timm's argument | its default | here |", "|---|---|---|", *rows]) + "\n"


def _options(argument: Argument) -> str:
    version = f" (since {argument.since})" if argument.since else ""
    version = f" (until {argument.until})" if argument.until else version
    return " ".join(f"`{option}`" for option in argument.options or ["DIR"]) + version


def _default(argument: Argument) -> str:
    if argument.kind == "flag":
        return "off"
    return "-" if argument.default in (None, "", [], {}) else f"`{_plain(argument.default)}`"


def _meaning(argument: Argument) -> str:
    if argument.key:
        return f"`{argument.key}`"
    if argument.here:
        return argument.here
    return f"no counterpart: {argument.lacks}" if argument.lacks else f"without effect: {argument.idle}"

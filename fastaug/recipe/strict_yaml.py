"""YAML 1.2 without its surprises: plain numbers, booleans and texts; no aliases, tags, merge keys or duplicate keys.

`1e-3` is a number; `no`, `0x1f`, `0o17`, `1_000`, `1:30` and `2026-11-22` are texts.
"""

import io
import re
from copy import deepcopy
from functools import lru_cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

DEEPEST = 20  # the reader takes minutes for thousands
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_PLAIN = {  # what an unquoted scalar is, the first that fits; everything else is a text
    "null": re.compile("|~|null|Null|NULL"),
    "bool": re.compile("true|True|TRUE|false|False|FALSE"),
    "int": re.compile("[-+]?[0-9]+"),
    "float": re.compile(rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
_TAGS = {kind: Tag(suffix=f"tag:yaml.org,2002:{kind}") for kind in _PLAIN}  # each finds out its own text once


class _Resolver(VersionedResolver):
    """Gives an unquoted scalar its kind by the table above; for a writer of YAML 1.1 by that version's rules too."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            for name, pattern in _PLAIN.items():
                if pattern.fullmatch(value):
                    return _TAGS[name]
            if self.processing_version != (1, 1):
                return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def _forbidden(event: Event) -> str:
    """What strict YAML does without, in words, if the event is of that kind."""
    if isinstance(event, AliasEvent):
        return "aliases (*name)"
    if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
        return "merge keys (<<)"
    if getattr(event, "tag", None) not in (None, "!"):
        return "tags (!name)"
    return "directives (%YAML)" if getattr(event, "version", None) else ""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, the caller's own; YAMLError when it is not strict YAML."""
    return deepcopy(_parsed(text))


@lru_cache(maxsize=128)  # recipes have their bases in common, and overrides their values
def _parsed(text: str) -> Any:
    """The same, in common with other callers."""
    reader = YAML(typ="safe", pure=True)
    reader.Resolver = _Resolver
    try:
        depth = 0
        for event in reader.parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > DEEPEST:
                line = event.start_mark.line + 1
                raise YAMLError(f"more than {DEEPEST} lists or mappings in each other are not read, line {line}")
            if found := _forbidden(event):
                raise YAMLError(f"{found} are not allowed, line {event.start_mark.line + 1}")
        return reader.load(text)
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise YAMLError(f"key {key!r} stands twice, again in line {line}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise YAMLError(f"cannot be read: {error}") from error


def write_yaml(values: dict[str, Any]) -> str:
    """The text from which `parse_yaml` reads back `values`; what YAML 1.1 would not read as a text is quoted too."""
    writer, text = YAML(typ="safe", pure=True), io.StringIO()
    writer.Resolver, writer.version = _Resolver, (1, 1)
    writer.default_flow_style, writer.width = False, 2**16
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keys in their order
    writer.dump(values, text)
    return text.getvalue().partition("\n---\n" if values else "\n--- ")[2]

"""YAML 1.2 without its surprises: plain numbers, booleans and texts; no aliases, tags, merge keys or duplicate keys.

`1e-3` is a number; `no`, `0x1f`, `0o17`, `1_000`, `1:30` and `2026-11-22` are texts.
"""

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, Event, ScalarEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_PLAIN = {  # what an unquoted scalar is, the first that fits; everything else is a text
    "null": re.compile("|~|null|Null|NULL"),
    "bool": re.compile("true|True|TRUE|false|False|FALSE"),
    "int": re.compile("[-+]?[0-9]+"),
    "float": re.compile(rf"{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}


class _Resolver(VersionedResolver):
    """Gives an unquoted scalar its kind by the table above."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            for name, pattern in _PLAIN.items():
                if pattern.fullmatch(value):
                    return Tag(suffix=f"tag:yaml.org,2002:{name}")
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, (False, False))


class _CautiousResolver(_Resolver):
    """For writing: what YAML 1.1 would not read as a text is none either, and so gets quotes."""

    _YAML_1_1 = VersionedResolver(version=(1, 1))

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        return self._YAML_1_1.resolve(kind, value, implicit) if tag == self.DEFAULT_SCALAR_TAG else tag


class _Representer(SafeRepresenter):
    """Writes 1.0e-05 for 1e-05, which YAML 1.1 would read as a text."""

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(float, _Representer.represent_float)


def _refuse(event: Event) -> None:
    """YAMLError at what strict YAML does without."""
    found = ""
    if isinstance(event, AliasEvent):
        found = "aliases (*name)"
    elif getattr(event, "tag", None) not in (None, "!"):
        found = "tags (!name)"
    elif isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
        found = "merge keys (<<)"
    elif getattr(event, "version", None) is not None:
        found = "directives (%YAML)"
    if found:
        raise YAMLError(f"{found} are not allowed, line {event.start_mark.line + 1}")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; YAMLError when it is not strict YAML."""
    reader = YAML(typ="safe", pure=True)
    reader.Resolver = _Resolver
    try:
        for event in reader.parse(text):
            _refuse(event)
        return reader.load(text)
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise YAMLError(f"key {key!r} stands twice, again in line {line}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise YAMLError(f"cannot be read: {error}") from error


def write_yaml(values: dict[str, Any]) -> str:
    """The text from which `parse_yaml`, and any reader of YAML 1.1 or 1.2, reads back `values`."""
    writer = YAML(typ="safe", pure=True)
    writer.Resolver, writer.Representer = _CautiousResolver, _Representer
    writer.default_flow_style = False
    writer.width = 2**16
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keys in their order
    text = io.StringIO()
    writer.dump(values, text)
    return text.getvalue()

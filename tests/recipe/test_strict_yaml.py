"""What strict YAML takes and refuses, and that every reader reads what is written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fastaug.recipe.strict_yaml import parse_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", 1e-3),
        ("a: 010", 10),
        ("a: -08", -8),
        ("a: .5e3", 500.0),
        ("a: 0o17", "0o17"),
        ("a: 0b1", "0b1"),
        ("a: 1_000.0", "1_000.0"),
        ("a: True", True),
        ("a: Off", "Off"),
        ("a: ~", None),
        ("a:", None),
        ("a: ''", ""),
        ("a: '3'", "3"),
        ("a: -.inf", float("-inf")),
        ("a: =", "="),
        ("a: |\n  x\n  y\n", "x\ny\n"),
        ("a: '<<'", "<<"),
    ],
)
def test_a_value_is_what_it_looks_like(text, value):
    (found,) = parse_yaml(text).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", r"aliases \(\*name\) are not allowed, line 2"),
        ("a:\n  b: !!str 3", r"tags \(!name\) are not allowed, line 2"),
        ("a: !!binary aGk=", r"tags \(!name\) are not allowed"),
        ("a:\n- {<<: {b: 1}}", r"merge keys \(<<\) are not allowed, line 2"),
        ("%YAML 1.1\n---\na: 010", r"directives \(%YAML\) are not allowed"),
        ("a: {b: 1,\n 'b': 2}", "key 'b' stands twice, again in line 2"),
        ("a: 1\n---\nb: 2", "expected a single document"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_line(text, message):
    with pytest.raises(YAMLError, match=message):
        parse_yaml(text)


def test_a_value_is_the_caller_s_own():
    parse_yaml("a: [1]")["a"].append(2)
    assert parse_yaml("a: [1]") == {"a": [1]}


TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
    st.from_regex(r"[-+]?[0-9._eExob:]{1,6}", fullmatch=True),
    st.sampled_from(["yes", "No", "on", "OFF", "y", "null", "True", "~", "<<", "=", "1:30", "2026-11-22", "???"]),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_written_is_read_back(values):
    assert parse_yaml(write_yaml(values)) == values


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_other_readers_read_what_is_written(version):
    texts = ["no", "On", "y", "1e-3", "08", "1_000", "0x1f", "1:30", "2026-11-22", "null", "", "=", "ü", "- a", "a: b"]
    values = {"lr": 1e-5, "large": 1e300, "no": texts, "section": {"empty": {}, "list": [], "none": None, "true": True}}
    reader = YAML(typ="safe", pure=True)
    reader.version = version
    assert reader.load(write_yaml(values)) == values

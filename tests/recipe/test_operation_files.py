"""Files of operations: what is wrong is named with file, entry and remedy; nothing is executed."""

import json
from pathlib import Path

import pytest

from fastaug.errors import RecipeError
from fastaug.recipe.operation_files import LARGEST_FILE, packaged_sets, read_entries
from fastaug.recipe.reading import read_recipe

WRONG = [
    ("[]", "must be a list of 1 to 200 operations, found 0 entries"),
    ("rotate: 30", "must be a list of 1 to 200 operations, found dict"),
    ("", "must be a list of 1 to 200 operations, found NoneType"),
    ("- rotate", "entry 1: must be a mapping with a function, found 'rotate'"),
    ("- {max: 3}", "entry 1: unknown function None (known: identity,"),
    ("- {function: rotat, max: 3}", "entry 1: unknown function 'rotat'; did you mean rotate? (known: identity,"),
    ("- {function: [rotate]}", "entry 1: unknown function ['rotate']"),
    ("- {function: rotate, reach: 3}", "entry 1: unknown key 'reach'; known: name, function, min"),
    ("- {function: rotate}", "entry 1: rotate: max must be a finite number, found None"),
    ("- {function: rotate, max: .nan}", "entry 1: rotate: max must be a finite number, found nan"),
    ("- {function: rotate, max: .inf}", "entry 1: rotate: max must be a finite number, found inf"),
    ("- {function: rotate, max: true}", "entry 1: rotate: max must be a finite number, found True"),
    ("- {function: rotate, max: '30'}", "entry 1: rotate: max must be a finite number, found '30'"),
    ("- {function: rotate, min: 40, max: 30}", "entry 1: rotate: min 40 is above max 30; exchange them"),
    (
        "- {function: rotate, max: -30}",
        "entry 1: rotate: without min, max has to be above 0, which changes nothing (rotate), found -30; write min and",
    ),
    ("- {function: posterize, max: 4}", "entry 1: posterize: without min, max has to be above 8, which"),
    ("- {function: scale, max: 0.5}", "entry 1: scale: without min, max has to be above 1, which"),
    (
        "- {function: rotate, max: 1000}",
        "entry 1: rotate: -180 to 1000 is outside of -180 to 180 (rotate, degrees); narrow it",
    ),
    ("- {function: contrast, min: -1, max: 1}", "entry 1: contrast: -1 to 1 is outside of 0 to 10 (contrast, factor)"),
    (
        "- {function: scale, min: 0, max: 1}",
        "entry 1: scale: 0 to 1 is outside of 0.1 to 10 (scale, factor); narrow it",
    ),
    ("- {function: contrast, min: 1, max: 1}", "entry 1: contrast: 1 to 1 changes nothing (contrast); widen it"),
    ("- {function: flip_x, max: 1}", "entry 1: flip_x: flip_x has no values; leave out max"),
    ("- {function: hue, max: .1, absolute: true}", "entry 1: hue: hue has no values in pixels; leave out absolute"),
    ("- {function: hue, max: .1, fixed: 1}", "entry 1: hue: fixed must be true or false, found 1"),
    ("- {function: hue, max: .1, name: a/b}", "entry 1: name 'a/b' must be a text of 1 to 60 characters without a"),
    ("- {function: hue, max: .1, name: ''}", "entry 1: name '' must be a text of 1 to 60 characters"),
    ("- {function: flip_x}\n- {function: flip_x}", "entry 2: the name 'flip_x' stands twice; give each a name"),
    ("- {function: identity}", "has no operation that does anything; add one"),
    ("- !!python/object/apply:os.system [echo]", "is not strict YAML: tags (!name) are not allowed, line 1"),
    ("- &a {function: flip_x}\n- *a", "is not strict YAML: "),
    ("- {function: flip_x", "is not strict YAML: "),
    ("- {function: flip, param: {axis: Z}}", "entry 1: flip needs the axis X or Y in param, found 'Z'"),
    ("- {function: rotate, param: 3}", "entry 1: param must be a mapping, found 3"),
    ("- {function: rotate, param: {maxi: 3}}", "entry 1: unknown key 'maxi' in param; known: axis, min, max,"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_named_with_file_and_entry(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_entries(str(path))
    (problem,) = caught.value.problems
    assert problem.startswith(f"meta.operations: {path}: {message}")


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("- {function: rot}\n- {function: rotate, max: 20}\n- {function: hue, max: 3}\n")
    with pytest.raises(RecipeError) as caught:
        read_entries(str(path))
    assert [problem.split(": ")[2] for problem in caught.value.problems] == ["entry 1", "entry 3"]


def test_json_may_not_hold_what_is_no_number(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps([{"name": "R", "function": "rotate", "param": {"max": float("nan")}}]))
    with pytest.raises(RecipeError, match="R: max must be a finite number, found nan"):
        read_entries(str(path))
    path.write_text("[" * 5000)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_entries(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_entries(str(path))


def test_a_key_that_stands_twice_is_refused_in_json_as_in_yaml(tmp_path):
    for name, text in (("a.json", '[{"function": "rotate", "max": 3, "max": 4}]'), ("a.yaml", "- {max: 3, max: 4}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(RecipeError, match=r"key ['\"]max['\"] stands twice"):
            read_entries(str(tmp_path / name))


def test_without_min_values_go_as_far_the_other_way_as_there_are_any(tmp_path):
    entries = "[{function: cutout, max: 0.5}, {function: scale, max: 2}, {function: hue, max: 0.1}]"
    (tmp_path / "a.yaml").write_text(entries)
    assert [(e.low, e.high) for e in read_entries(str(tmp_path / "a.yaml"))] == [(0, 0.5), (0.5, 2), (-0.1, 0.1)]


def test_huge_files_folders_and_missing_ones(tmp_path):
    huge = tmp_path / "huge.yaml"
    huge.write_text("#" * (LARGEST_FILE + 1))
    with pytest.raises(RecipeError, match="larger than 65,536 bytes"):
        read_entries(str(huge))
    with pytest.raises(RecipeError, match="cannot be read"):
        read_entries(str(tmp_path))
    with pytest.raises(RecipeError, match=r"neither a file nor a packaged set; did you mean wide\? \(packaged: bad_tf"):
        read_entries("wied")


def test_every_packaged_set_is_read():
    assert "inv_scale_wide" in packaged_sets()
    for name in packaged_sets():
        assert read_entries(name)


def recipe(tmp_path: Path, **meta: object) -> Path:
    path = tmp_path / "recipe.yaml"
    keys = json.dumps({"learn": ["policy"], "probabilities": "score", **meta})
    path.write_text(f'data: {{root: "embedded:mnist5k"}}\nmeta: {keys}\n')
    return path


def test_a_recipe_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(RecipeError, match=r"meta.operations: nowhere: is neither a file nor a packaged set"):
        read_recipe(recipe(tmp_path, operations="nowhere"))
    with pytest.raises(RecipeError, match=r"meta.sequence: 38,416 sequences of 4 of the operations of wide"):
        read_recipe(recipe(tmp_path, operations="wide", sequence=True, slots=4))
    assert read_recipe(recipe(tmp_path, operations="wide", sequence=True, slots=3)).meta.sequence

"""Policy files that are not ours, damaged or hostile: each named by file, key and remedy, nothing of them executed."""

import json
import os

import pytest

from fastaug.augment import load_policy
from fastaug.errors import RecipeError
from fastaug.recipe.policy_file import LARGEST, read_policy_file

GOOD = {
    "fastaug_policy": 1,
    "version": "0.1.0",
    "data": {"img_size": 8, "mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]},
    "parts": {
        "policy": {
            "kind": "policy",
            "settings": {
                **{"slots": 1, "sequence": False, "shared_magnitude": False, "tau": 1.0, "mix": 1.0, "padding": "mean"},
                "operations": [{"name": "turn", "function": "rotate", "max": 30, "min": -30}],
            },
            "values": {"policy.logits": [[0.5, 0.25]], "policy.strengths": [0.0]},
        }
    },
}


def changed(path, value):
    """GOOD as text with the value at `path` replaced; None takes it out."""
    whole = json.loads(json.dumps(GOOD))
    *parents, last = path
    at = whole
    for step in parents:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(whole)


def extreme(tau):
    """GOOD as text with logits whose product with `tau` is more than float32 holds."""
    whole = json.loads(json.dumps(GOOD))
    whole["parts"]["policy"]["settings"]["tau"] = tau
    whole["parts"]["policy"]["values"]["policy.logits"] = [[1e30, -1e30]]
    return json.dumps(whole)


POLICY, SETTINGS = ["parts", "policy"], ["parts", "policy", "settings"]
VALUES = ["parts", "policy", "values"]
OPERATION = [*SETTINGS, "operations", 0]
BAD = {
    "empty": ("", "is no JSON, or was cut off"),
    "cut off": (json.dumps(GOOD)[:-40], "is no JSON, or was cut off"),
    "not ours": ("{}", "fastaug_policy: is missing: this is no policy file of fastaug"),
    "a list": ("[]", "fastaug_policy: is missing"),
    "a picture": (b"\x89PNG\r\n\x1a\n\xff\xfe", "is no JSON"),
    "NUL": (b"\0", "is no JSON"),
    "tomorrow": (changed(["fastaug_policy"], 2), "fastaug_policy: 2 is not the version that this fastaug reads, 1"),
    "true": (changed(["fastaug_policy"], True), "fastaug_policy: True is not the version"),
    "a summary": (changed(["parts", "policy", "summary"], "fine"), "parts.policy.summary: must be an object, found 'f"),
    "words in it": (changed(["parts", "policy", "summary"], {"z": "2"}), "parts.policy.summary.z: '2' is no number"),
    "large in it": (changed(["parts", "policy", "summary"], {"z": 10**400}), "parts.policy.summary.z: 1000"),
    "deep": ('{"fastaug_policy": 1, "data": {}, "parts": ' + 100_000 * "[", "too deeply nested"),
    "nested": (changed([*VALUES, "policy.strengths"], json.loads(30 * "[" + "1" + 30 * "]")), "more than 20 lists"),
    "twice": ('{"fastaug_policy": 1, "fastaug_policy": 1}', "key 'fastaug_policy' stands twice"),
    "NaN": (changed([*VALUES, "policy.strengths"], [float("nan")]), "NaN stands in it"),
    "infinity": (changed([*VALUES, "policy.strengths"], [float("inf")]), "Infinity stands in it"),
    "overflow": (json.dumps(GOOD).replace("0.25", "1e999"), "values.policy.logits[0][1]: inf is out of range"),
    "huge": (json.dumps(GOOD).replace("0.25", "1e39"), "values.policy.logits[0][1]: 1e+39 is out of range"),
    "digits": (json.dumps(GOOD).replace("0.25", 5000 * "1"), "a number of 5,000 digits, 1111"),
    "300 digits": (json.dumps(GOOD).replace("0.25", 400 * "1"), "values.policy.logits[0][1]: 1111"),
    "text": (changed([*VALUES, "policy.strengths"], ["1"]), "values.policy.strengths[0]: '1' is no number"),
    "yes": (changed([*VALUES, "policy.strengths"], [True]), "values.policy.strengths[0]: True is no number"),
    "null": (json.dumps(GOOD).replace("0.25", "null"), "values.policy.logits[0][1]: None is no number"),
    "no parts": (changed(["parts"], None), "parts: must be an object, found None"),
    "no data": (changed(["data"], 3), "data: must be an object, found 3"),
    "no mean": (changed(["data", "mean"], None), "data.mean: must be three numbers of -1000 to 1000, found None"),
    "tables": (changed(["tables"], 3), "tables: must be a list of names"),
    "path as a part": (changed(["parts", "../../x"], {}), "parts: '../../x' is no name of a learned part"),
    "code as a part": (changed(["parts", "__import__('os')"], {}), "is no name of a learned part"),
    "no kind": (changed([*POLICY, "kind"], 7), "parts.policy.kind: must be a text, found 7"),
    "code as a kind": (changed([*POLICY, "kind"], "os:system"), "parts.policy.kind: 'os:system' is no kind of shared"),
    "another kind": (changed([*POLICY, "kind"], "softness"), "kind: 'softness' is no kind of shared policy, 'policy'"),
    "no values": (changed([*POLICY, "values"], []), "parts.policy.values: must be an object, found []"),
    "missing": (changed([*VALUES, "policy.strengths"], None), "parts.policy.values.policy.strengths: is missing"),
    "unknown": (
        changed([*VALUES, "policy.more"], [1]),
        "parts.policy.values.policy.more: is no parameter of this part",
    ),
    "shape": (
        changed([*VALUES, "policy.strengths"], [1, 2]),
        "values.policy.strengths: has shape [2], and [1] is needed",
    ),
    "ragged": (changed([*VALUES, "policy.logits"], [[1, 2], [1]]), "values.policy.logits: "),
    "slots": (changed([*SETTINGS, "slots"], 9), "parts.policy.settings.slots: 9 must be a whole number from 1 to 8"),
    "half a slot": (changed([*SETTINGS, "slots"], 1.5), "settings.slots: 1.5 must be"),
    "padding": (changed([*SETTINGS, "padding"], "../x"), "settings.padding: '../x' is not one of mean, black"),
    "list as padding": (changed([*SETTINGS, "padding"], ["mean"]), "settings.padding: ['mean'] is not one of"),
    "sequence": (changed([*SETTINGS, "sequence"], 1), "settings.sequence: 1 must be true or false"),
    "tau": (changed([*SETTINGS, "tau"], -1), "settings.tau: -1 must be a number from 0 to 1e+30"),
    "NaN by tau": (extreme(1e30), "settings.tau: 1e+30 times values.policy.logits, of up to 1e+30, gives no finite"),
    "NaN by less": (extreme(1e10), "settings.tau: 1e+10 times values.policy.logits, of up to 1e+30, gives no finite"),
    "mix": (changed([*SETTINGS, "mix"], 1.5), "settings.mix: 1.5 must be a number from 0 to 1"),
    "both": (
        changed(SETTINGS, GOOD["parts"]["policy"]["settings"] | {"tau": 0.5, "mix": 0.5}),
        "settings: tau must be 0 or more and mix in [0, 1], one of them 1",
    ),
    "sequences": (
        changed(
            SETTINGS,
            GOOD["parts"]["policy"]["settings"]
            | {"slots": 8, "sequence": True}
            | {"operations": [{"name": f"n{i}", "function": "rotate", "max": 9} for i in range(200)]},
        ),
        "sequences are more than",
    ),
    "no setting": (changed([*SETTINGS, "tau"], None), "settings.tau: is missing"),
    "setting": (changed([*SETTINGS, "exec"], 1), "parts.policy.settings.exec: is no setting of a policy"),
    "no operations": (changed([*SETTINGS, "operations"], []), "settings.operations: must be a list of 1 to"),
    "function": (
        changed([*OPERATION, "function"], "os.system"),
        "settings.operations[0]: unknown function 'os.system'",
    ),
    "close": (changed([*OPERATION, "function"], "rotat"), "did you mean rotate?"),
    "function that is none": (
        changed(OPERATION, {"function": [], "param": {}}),
        "settings.operations[0]: unknown function []",
    ),
    "range": (
        changed([*OPERATION, "max"], 1e9),
        "settings.operations[0]: turn: -30 to 1e+09 is outside of -180 to 180",
    ),
    "name": (changed([*OPERATION, "name"], "a\nb"), "settings.operations[0]: name 'a\\nb' must be a text"),
    "long name": (changed([*OPERATION, "name"], 100 * "a"), "settings.operations[0]: name 'aaaa"),
    "operation": (changed(OPERATION, "rotate"), "settings.operations[0]: must be a mapping"),
    "identity": (changed([*OPERATION], {"function": "identity"}), "settings.operations[0]: identity does nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_told(tmp_path, name):
    content, said = BAD[name]
    path = tmp_path / "policy.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as raised:
        load_policy(path)
    (problem,) = raised.value.problems
    assert problem.startswith(f"{path}: ")
    assert said in problem
    assert len(problem) < 600


@pytest.mark.parametrize("name", ["missing", "unknown", "shape", "no setting", "setting", "digits", "NaN by tau"])
def test_what_is_told_has_a_remedy(tmp_path, name):
    (tmp_path / "policy.json").write_text(BAD[name][0])
    with pytest.raises(RecipeError, match=r"; take the file [a-z]"):
        load_policy(tmp_path)


def test_large_logits_whose_probabilities_are_finite_load(tmp_path):
    for values, tau in (([[3e38, -3e38]], 1.0), ([[1.0, -1.0]], 1e30)):
        whole = json.loads(extreme(tau))
        whole["parts"]["policy"]["values"]["policy.logits"] = values
        (tmp_path / "policy.json").write_text(json.dumps(whole))
        assert load_policy(tmp_path).policy.probabilities().tolist() == [[1.0, 0.0]]


def test_a_good_one_loads(tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps(GOOD))
    assert load_policy(tmp_path).policy.slots == 1
    assert load_policy(tmp_path / "policy.json").policy.transforms[0].name == "turn"


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"has no policy.json; name the folder of a run"):
        read_policy_file(tmp_path)
    with pytest.raises(RecipeError, match="No such file"):
        read_policy_file(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="Not a regular file"):
        read_policy_file(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(RecipeError, match="is larger than 32 MiB"):
        read_policy_file(tmp_path / "large")

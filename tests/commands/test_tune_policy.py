"""The tool that tunes a policy: its variants, its rungs, what it refuses; once for real."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from fastaug.commands.tune_policy import (
    LOGITS,
    STRENGTHS,
    Rung,
    Variant,
    hard_half,
    logit,
    main,
    rungs,
    softmax,
    varied,
    write_variants,
)
from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe

NAMES = ("turn", "slide", "light", "mirror")
PIECE = {
    "kind": "policy",
    "settings": {
        **{"slots": 2, "sequence": False, "shared_magnitude": False, "tau": 1.0, "mix": 1.0, "padding": "mean"},
        "operations": [
            {"name": "turn", "function": "rotate", "max": 30},
            {"name": "slide", "function": "translate_x", "max": 0.3},
            {"name": "light", "function": "brightness", "min": 0.5, "max": 1.5},
            {"name": "mirror", "function": "flip_x"},
        ],
    },
    "values": {
        LOGITS: [[math.log(p) for p in row] for row in ([0.2, 0.2, 0.3, 0.25, 0.05], [0.2, 0.4, 0.1, 0.25, 0.05])],
        STRENGTHS: [0.0, 0.0, logit(0.9), 0.0],
    },
    "summary": {f"policy_difficulty/{name}": z for name, z in zip(NAMES, (3.0, 1.0, -4.0, 9.0), strict=True)},
    "start": {LOGITS: [[0.0] * 5] * 2, STRENGTHS: [0.0] * 4},
}
WHOLE = {"fastaug_policy": 1, "data": {"mean": [0, 0, 0]}, "parts": {"policy": PIECE}}


def piece_of(variant):
    return varied(WHOLE, variant)["parts"]["policy"]


def test_a_variant_has_the_mean_probabilities_and_stronger_magnitudes():
    piece = piece_of(Variant(3, 1.5))
    assert piece["settings"]["slots"] == len(piece["values"][LOGITS]) == 3
    for row in piece["values"][LOGITS]:
        assert softmax(row) == pytest.approx([0.2, 0.3, 0.2, 0.25, 0.05])
    magnitudes = [1 / (1 + math.exp(-raw)) for raw in piece["values"][STRENGTHS]]
    assert magnitudes == pytest.approx([0.75, 0.75, 0.98, 0.75])  # never beyond the range
    far = PIECE["values"] | {STRENGTHS: [-800.0, 800.0, 0.0, 0.0]}
    piece = varied(WHOLE | {"parts": {"policy": PIECE | {"values": far}}}, Variant(1, 1.5))["parts"]["policy"]
    assert [1 / (1 + math.exp(-raw)) for raw in piece["values"][STRENGTHS]][:2] == pytest.approx([0.02, 0.98])


def test_the_harder_half_is_of_what_learning_left():
    assert hard_half(PIECE, [0.3, 0.2, 0.25, 0.05]) == {"turn", "slide"}  # mirror is harder, but has been left
    shares = softmax(piece_of(Variant(1, 1.0, hard=True))["values"][LOGITS][0])
    assert shares == pytest.approx([0.2, 0.48, 0.32, 0, 0], abs=1e-9)
    assert hard_half(PIECE | {"summary": {}}, [0.25] * 4) == set()
    thin = {name: z / 5 for name, z in PIECE["summary"].items()}  # as from a single update
    assert hard_half(PIECE | {"summary": thin}, [0.25] * 4) == set()


def test_where_learning_began_is_kept_for_the_judge_as_long_as_it_has_as_many_slots():
    assert piece_of(Variant(2, 1.0, hard=True))["start"] == PIECE["start"]
    assert "start" not in piece_of(Variant(1, 1.0))


def test_what_was_learned_is_left_as_it_was():
    before = json.dumps(WHOLE)
    varied(WHOLE, Variant(1, 2.0, hard=True))
    assert json.dumps(WHOLE) == before


def test_rungs_keep_a_third_and_double_in_length():
    assert list(rungs(12, 30, 0.2)) == [Rung(6, 4), Rung(12, 2), Rung(24, 1)]
    assert list(rungs(4, 10, 0.8)) == [Rung(8, 2), Rung(10, 1)]
    assert list(rungs(9, 10, 1.0)) == [Rung(10, 1)]  # trainings of full length decide
    assert list(rungs(1, 10, 0.2)) == []


@pytest.fixture
def tune(folder, tool):
    """tune("word", ..., code=0): what the tool says."""
    given = (folder / "tiny.yaml", "--runs", folder / "runs", "--out", folder / "tuned.json")
    return lambda *words, code=0: tool("tune_policy", *given, *words, code=code)


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("meta", 4), ("test", 4)):
        for name in ("dark", "light"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 128, (16, 16, 3)) + 100 * (name == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / split / name / f"{i}.png")
    (tmp_path / "tiny.yaml").write_text(
        f"data: {{root: {tmp_path / 'images'}, img_size: 16, threads: 1}}\nmodel: {{name: test_resnet}}\n"
        "train: {epochs: 4, batch_size: 8}\naugment: {hflip: 0}\n"
    )
    (tmp_path / "policy.json").write_text(json.dumps(WHOLE))
    return tmp_path


def test_policies_that_cannot_be_varied_are_refused(folder, tune):
    (folder / "policy.json").write_text(json.dumps(WHOLE | {"parts": {}}))
    assert "parts.policy: is missing" in tune("--policy", str(folder / "policy.json"), code=2)
    settings = PIECE["settings"] | {"shared_magnitude": True}
    (folder / "policy.json").write_text(json.dumps(WHOLE | {"parts": {"policy": PIECE | {"settings": settings}}}))
    assert "settings.shared_magnitude: True" in tune("--policy", str(folder / "policy.json"), code=2)


def test_by_default_the_harder_half_is_kept_and_nothing_trained(folder, tune):
    said = tune("--policy", str(folder / "policy.json"))
    assert "hard-slots2-strength1, at the price of 0.0 trainings" in said
    tuned = json.loads((folder / "tuned.json").read_text())["parts"]["policy"]
    assert tuned == json.loads(json.dumps(piece_of(Variant(2, 1.0, hard=True))))
    assert not (folder / "runs").exists()


def test_without_evidence_there_is_no_harder_half(folder, tune):
    (folder / "policy.json").write_text(json.dumps(WHOLE | {"parts": {"policy": PIECE | {"summary": {}}}}))
    assert "meta.probabilities=evidence" in tune("--policy", str(folder / "policy.json"), code=2)
    assert "all-slots2" in tune("--policy", str(folder / "policy.json"), "--keep", "all")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({LOGITS: [], STRENGTHS: [0.0] * 4}, "policy.logits"),
        ({LOGITS: [[0.0] * 5] * 2, STRENGTHS: [0.0]}, "policy.strengths"),
    ],
)
def test_numbers_that_make_no_policy_are_refused(folder, tune, values, words):
    (folder / "policy.json").write_text(json.dumps(WHOLE | {"parts": {"policy": PIECE | {"values": values}}}))
    assert words in tune("--policy", str(folder / "policy.json"), code=2)


def test_an_earlier_start_with_another_policy_is_not_taken_for_this_one(folder):
    recipe, tried = read_recipe(folder / "tiny.yaml"), [Variant(1, 1.0), Variant(2, 1.0)]
    write_variants(recipe, WHOLE, tried, folder / "runs", "tune")
    other = {**WHOLE, "parts": {"policy": PIECE | {"values": PIECE["values"] | {STRENGTHS: [1.0] * 4}}}}
    with pytest.raises(RecipeError, match="choose another --name"):
        write_variants(recipe, other, tried, folder / "runs", "tune")


def test_the_name_of_a_shipped_recipe_is_what_variants_are_trained_by(folder, tool, monkeypatch):
    commands = []

    def start(command, **_):
        commands.append(command)
        raise OSError("not started")

    monkeypatch.setattr("subprocess.Popen", start)
    given = ("quickstart", f"data.root={folder / 'images'}", "data.img_size=16", "data.meta_fraction=0")
    words = ("--policy", folder / "policy.json", "--runs", folder / "runs", "--out", folder / "tuned.json")
    with pytest.raises(OSError, match="not started"):
        tool("tune_policy", *given, *words, "--slots", "1", "2")
    assert commands[0][3].endswith("recipes/quickstart.yaml")


@pytest.mark.parametrize("slots", [["0"], ["2", "9"]])
def test_more_operations_an_image_than_a_policy_can_have_are_refused_before_anything_is_written(folder, slots, capsys):
    words = ["tiny.yaml", "--policy", str(folder / "policy.json"), "--out", str(folder / "tuned.json")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--runs", str(folder / "runs"), "--slots", *slots])
    assert ended.value.code == 2
    assert f"--slots must be from 1 to 8, found {' '.join(slots)}" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_tunes_for_real_and_goes_on_where_it_was_stopped(folder, tune):
    words = ("--policy", str(folder / "policy.json"), "--slots", "1", "2", "--keep", "hard", "all", "--share", "0.5")
    said = tune(*words)
    assert said.count("error ") >= 6  # four variants, then two
    tuned = json.loads((folder / "tuned.json").read_text())["parts"]["policy"]
    assert tuned["settings"]["slots"] in (1, 2)
    results = sorted((folder / "runs").glob("*/result.json"))
    assert len(results) == 6
    stamps = [file.stat().st_mtime_ns for file in results]
    verdict = next(line for line in said.splitlines() if line.endswith("trainings"))
    assert verdict in tune(*words).splitlines()
    assert [file.stat().st_mtime_ns for file in results] == stamps
    meta = {str(path) for path in (folder / "images" / "meta").rglob("*.png")}
    lists = folder / "runs" / "tune-tiny-splits"
    assert len((lists / "select.txt").read_text().split()) == len(meta)
    assert (lists / "meta.txt").read_text() == ""

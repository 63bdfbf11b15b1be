"""Sub-policies of a file: what is drawn, what is done to pixels, what of a file is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from fastaug.augment.fixed.build import build_policy
from fastaug.augment.fixed.listed import Act
from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.subpolicy_files import OPERATIONS, read_subpolicies
from fastaug.seeding import Key, Stream

KEY = Key(seed=7, epoch=2, stream=Stream.POLICY)
HEIGHT, WIDTH = 20, 30
LIST = """
- [[ShearX, 1, 0.75], [Invert, 0.25, 0.3]]
- [[Rotate, 0.5, 1], [Color, 0, 0.3]]
"""


@pytest.fixture
def policy_of(tmp_path):
    """policy_of(text of a YAML file) -> the policy."""

    def build(text=LIST):
        (tmp_path / "list.yaml").write_text(text)
        return build_policy(f"file:{tmp_path / 'list.yaml'}", img_size=(HEIGHT, WIDTH), mean=(0.2, 0.4, 0.6))

    return build


def images(n):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, HEIGHT, WIDTH, 3), dtype=np.uint8))


def test_an_image_draws_one_sub_policy_and_each_step_with_its_probability(policy_of):
    n = 1500
    drawn = policy_of().sample(KEY, np.arange(n))
    sheared = [acts for acts in drawn if acts and acts[0].operation == "ShearX"]
    assert len(sheared) / n == pytest.approx(0.5, abs=0.07)
    assert {round(acts[0].value, 6) for acts in sheared} == {-0.15, 0.15}  # level .75 of -.3 to .3, mirrored
    assert sum(acts[0].value > 0 for acts in sheared) / len(sheared) == pytest.approx(0.5, abs=0.07)
    assert sum(len(acts) == 2 for acts in sheared) / len(sheared) == pytest.approx(0.25, abs=0.06)
    others = [acts for acts in drawn if acts not in sheared]
    assert {act.operation for acts in others for act in acts} == {"Rotate"}
    assert sum(not acts for acts in others) / len(others) == pytest.approx(0.5, abs=0.07)


def test_draws_and_pixels_do_not_depend_on_the_batch_and_travel_between_processes(policy_of):
    policy, pixels, ids = policy_of(), images(12), np.arange(100, 112)
    before = torch.get_rng_state()
    whole = policy.apply(pixels, policy.sample(KEY, ids))
    assert torch.equal(torch.get_rng_state(), before)
    assert (whole != pixels).flatten(1).any(1).sum() > 5
    other = pickle.loads(pickle.dumps(policy))
    for i in (0, 7):
        alone = other.apply(pixels[i : i + 1], other.sample(KEY, ids[i : i + 1]))
        assert torch.equal(alone[0], whole[i])


def done(policy, picture, operation, value, x=0.5, y=0.5):
    return np.asarray(policy.transformed(picture, (Act(operation, value, x, y),)))


def test_values_mean_what_they_mean_in_the_published_lists(policy_of):
    policy, picture = policy_of(), Image.fromarray(images(1)[0].numpy())
    pixels = np.asarray(picture)
    expected = {
        ("Color", 0.1): ImageEnhance.Color(picture).enhance(0.1),
        ("Contrast", 1.9): ImageEnhance.Contrast(picture).enhance(1.9),
        ("Brightness", 0.5): ImageEnhance.Brightness(picture).enhance(0.5),
        ("Sharpness", 1.4): ImageEnhance.Sharpness(picture).enhance(1.4),
        ("Solarize", 100): ImageOps.solarize(picture, 100),
        ("Posterize", 5): ImageOps.posterize(picture, 5),
        ("Equalize", 0): ImageOps.equalize(picture),
        ("AutoContrast", 0): ImageOps.autocontrast(picture),
        ("Invert", 0): ImageOps.invert(picture),
        ("Rotate", 90): picture.rotate(90),
    }
    for (operation, value), result in expected.items():
        np.testing.assert_array_equal(done(policy, picture, operation, value), np.asarray(result), err_msg=operation)
    moved = done(policy, picture, "TranslateX", 0.2)
    np.testing.assert_array_equal(moved[:, 6:], pixels[:, :-6])
    moved = done(policy, picture, "TranslateY", -0.45)
    np.testing.assert_array_equal(moved[:-9], pixels[9:])


def test_a_cutout_stays_in_the_image_and_leaves_the_given_one_alone(policy_of):
    policy, picture = policy_of(), Image.fromarray(images(1)[0].numpy())
    pixels = np.asarray(picture).copy()
    for x, y, box in ((0.5, 0.5, (12, 7, 18, 13)), (0.0, 0.99, (0, 16, 6, 20))):
        cut = done(policy, picture, "Cutout", 0.2, x, y)
        left, top, right, bottom = box
        assert (cut[top:bottom, left:right] == (51, 102, 153)).all()
        covered = np.zeros((HEIGHT, WIDTH, 1), dtype=bool)
        covered[top:bottom, left:right] = True
        np.testing.assert_array_equal(np.where(covered, 0, cut), np.where(covered, 0, pixels))
    np.testing.assert_array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_runs_at_both_ends(policy_of, operation):
    for level in (0, 1):
        policy = policy_of(f"- [[{operation}, 1, {level}]]")
        out = policy.apply(images(2), policy.sample(KEY, [0, 1]))
        assert out.shape == (2, HEIGHT, WIDTH, 3)


# ---- files ----


def test_json_is_read_as_yaml_is(tmp_path, policy_of):
    (tmp_path / "list.json").write_text(
        json.dumps([[["ShearX", 1, 0.75], ["Invert", 0.25, 0.3]], [["Rotate", 0.5, 1]]])
    )
    policy_of("- [[ShearX, 1, 0.75], [Invert, 0.25, 0.3]]\n- [[Rotate, 0.5, 1]]")
    assert read_subpolicies(str(tmp_path / "list.json")) == read_subpolicies(str(tmp_path / "list.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a list of 1 to 10,000 sub-policies, found"),
        ("[]", "found 0 entries"),
        ("{a: 1}", "must be a list"),
        ("- [[Sheer, 1, 0]]", "sub-policy 1: unknown operation 'Sheer'; did you mean Shear"),
        (
            "- [[Invert, 1, 0]]\n- [[Invert, 1.5, 0]]",
            "sub-policy 2: Invert: the probability must be a number in [0, 1]",
        ),
        ("- [[Rotate, 1, -1]]", "Rotate: the level must be a number in [0, 1], found -1"),
        ("- [[Rotate, 1, .nan]]", "Rotate: the level must be"),
        ("- [[Rotate, true, 0]]", "Rotate: the probability must be"),
        ("- [[Rotate, 1]]", "a step must be [operation, probability, level], found ['Rotate', 1]"),
        ("- [Rotate, 1, 0]", "a step must be [operation, probability, level], found 'Rotate'"),
        ("- []", "must be a list of 1 to 16 steps"),
        ("- [[!!python/name:os.system , 1, 0]]", "is not strict YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_before_anything_starts(tmp_path, text, words):
    (tmp_path / "list.yaml").write_text(text)
    (tmp_path / "recipe.yaml").write_text("data: {root: x}\nmodel: {name: test_resnet}")
    with pytest.raises(RecipeError) as error:
        read_recipe(tmp_path / "recipe.yaml", [f"augment.aa='file:{tmp_path / 'list.yaml'}'"])
    (problem,) = error.value.problems
    assert problem.startswith(f"augment.aa: {tmp_path / 'list.yaml'}: ")
    assert words in problem


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(RecipeError, match=r"augment\.aa: nowhere\.yaml: cannot be read: .*; give a YAML or JSON file"):
        read_subpolicies("nowhere.yaml")

"""The shift of a held-out split, found by a run that does not know it, and left as a policy."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastaug import train
from fastaug.augment.augmenter import NUMBERS
from fastaug.commands.find_shift import refuse_unsuited
from fastaug.errors import RecipeError
from fastaug.meta.learned_part import Setting
from fastaug.meta.parts.augmenter import AugmenterPart
from fastaug.recipe.policy_file import read_policy_file
from fastaug.recipe.reading import to_yaml
from fastaug.recipe.schema import Augment, Data, Meta, Recipe, Run

SHORT = {"train.epochs": 2, "train.batch_size": 32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on upright digits, whose held-out digits are turned by 45 degrees."""
    folder = tmp_path_factory.mktemp("find_shift") / "plain"
    keys = {"run.dir": str(folder), "data.known_shift": "rotate45", "meta.learn": [], "data.threads": 1}
    train("mnist5k_bilevel", **SHORT, **keys, **{"meta.settle_epochs": 0, "optim.warmup_epochs": 0.5})
    return folder


def test_a_rotation_is_found_and_written_as_a_policy(plain, tmp_path, tool):
    file = tmp_path / "policy.json"
    said = tool("find_shift", plain, "--kind", "rotation", "--out", file)
    (angle,) = re.findall(r"rotate +(-?[\d.]+) degrees", said)
    assert float(angle) == pytest.approx(45, abs=5)
    left, before, chance = map(
        float, re.search(r"by ([\d.]+) standard.* by ([\d.]+) without.* ([\d.]+)\n", said).groups()
    )
    assert left < 1.5 * chance < before
    assert "something else differs" not in said
    piece = read_policy_file(file).pieces["augmenter"]
    recipe = Recipe(meta=Meta(learn=["augmenter"], augmenter="rotation"))
    part = AugmenterPart(Setting(recipe, 0, 0, SimpleNamespace(param_groups=[{}]), torch.device("cpu")))
    part.load_export({"settings": piece.settings, "values": piece.values})
    assert part.summary()["augmenter_mean/rotate"] == pytest.approx(float(angle), abs=1e-3)
    assert part.summary()["augmenter_sd/rotate"] == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
def test_what_does_not_explain_the_difference_is_told(plain, tool):
    said = tool("find_shift", plain, "--kind", "translation")
    assert "something else differs too, or no --kind translation would show it" in said


def test_images_that_are_not_shifted_are_found_where_they_are(plain, tool):
    said = tool("find_shift", plain, "data.known_shift=none", "--kind", "scale")
    factors = [float(value) for value in re.findall(r"([\d.]+) factor", said)]
    assert factors == pytest.approx([1, 1], abs=0.05)
    assert NUMBERS["scale_x"].unit == "factor"


def test_damaged_images_are_told(tiny_run, tmp_path, tool):
    root = tmp_path / "images"
    shutil.copytree(tiny_run.parent / "images", root)
    torn = root / "val" / "class0" / "000.jpg"
    torn.write_bytes(torn.read_bytes()[:300])
    said = tool("find_shift", tiny_run, f"data.root={root}", "--split", "test", "--kind", "translation")
    assert "skipped: damaged image" in said
    assert "class0/000.jpg" in said
    assert "translate_x" in said


def test_splits_without_images_are_named(tiny_run, tool):
    said = tool("find_shift", tiny_run, code=3)
    assert "meta: no class has 2 images that can be read in it and in train" in said
    assert "meta 0)" in said


@pytest.mark.parametrize(
    ("recipe", "kind", "told"),
    [
        (Recipe(meta=Meta(learn=["augmenter"])), "affine", "was trained under transformations that were learned"),
        (Recipe(meta=Meta(learn=["policy"])), "affine", "was trained under transformations that were learned"),
        (Recipe(run=Run(plant=0.1)), "affine", "run.plant: the run's labels were flipped on purpose"),
        (Recipe(data=Data(channels=1, mean=[0.5], std=[0.5])), "affine", "--out: a policy is for images of three"),
        (Recipe(data=Data(loader="synthetic")), "affine", "data.loader: synthetic images look like none"),
        (Recipe(meta=Meta(reuse="policy.json")), "affine", "was trained under transformations that were learned"),
        (
            Recipe(data=Data(multi_label="columns", table="t.csv"), augment=Augment(loss="bce")),
            "affine",
            "data.multi_label: columns: images of one class are compared",
        ),
        (
            Recipe(data=Data(channels=1, mean=[0.5], std=[0.5])),
            "affine_color",
            "--kind: affine_color is of colours, and data.channels = 1",
        ),
    ],
)
def test_runs_that_cannot_be_asked_are_refused(recipe, kind, told, tmp_path):
    if recipe.data.loader != "synthetic":
        recipe.data.root = "x"
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    with pytest.raises(RecipeError, match=re.escape(told)):
        refuse_unsuited(tmp_path, recipe, kind, writes=True)

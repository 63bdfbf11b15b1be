import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from fastaug.errors import RecipeError
from fastaug.recipe.auto_values import KEYS
from fastaug.recipe.reading import read_recipe, read_stored, to_yaml

ALL = ", ".join(f"{key}: auto" for key in KEYS)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(f"data: {{root: x, {ALL}}}\nmodel: {{name: tf_efficientnet_lite0}}")
    return path


def test_auto_is_what_timm_s_config_says(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_recipe(recipe).data
    known = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert (data.img_size, data.crop_pct, data.interpolation) == (224, 0.875, "bicubic")
    assert (tuple(data.mean), tuple(data.std)) == (known.mean, known.std) == ((0.5,) * 3, (0.5,) * 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("auto: data: img_size = 224, mean = [0.5, 0.5, 0.5]")
    assert "as tf_efficientnet_lite0.in1k was trained" in line


def test_the_tag_of_the_weights_counts_and_written_values_stay(recipe: Path) -> None:
    found = [
        read_recipe(recipe, [f"model.name=resnet50.{tag}", "data.std=[1, 1, 1]"]).data for tag in ("a1_in1k", "tv_in1k")
    ]
    assert [data.crop_pct for data in found] == [0.95, 0.875]
    assert all(data.std == [1, 1, 1] for data in found)


def test_numbers_are_stored(recipe: Path, tmp_path: Path) -> None:
    resolved = read_recipe(recipe)
    text = to_yaml(resolved)
    assert "auto" not in text.partition("data:")[2].partition("model:")[0]
    (tmp_path / "stored.yaml").write_text(text)
    assert read_stored(tmp_path / "stored.yaml")[0] == resolved


def test_a_folder_in_the_hub_s_layout_says_it_itself(recipe: Path, tmp_path: Path) -> None:
    config = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "crop_pct": 1.0}
    config |= {"interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": config}))
    data = read_recipe(recipe, [f"model.name=local-dir:{tmp_path}"]).data
    assert (data.img_size, data.mean, data.crop_pct, data.interpolation) == (96, [0.1, 0.2, 0.3], 1.0, "bilinear")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "resnet5O",
            "data.img_size: auto (also mean, std, crop_pct, interpolation): model.name: timm does not know 'res",
        ),
        ("hf-hub:a/b", "hf-hub:a/b is known on the hub alone"),
        ("local-dir:absent", "absent/config.json cannot be read"),
    ],
)
def test_what_cannot_be_resolved_is_told_once(recipe: Path, name: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, [f"model.name={name}", "model.pretrained=true"])
    (problem,) = caught.value.problems
    assert said in problem
    assert "write the value" in problem


def test_what_loaders_do_not_have_is_named(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"data\.img_size: auto is \[1024, 768\] for .*, which is no square; write the"
    ):
        read_recipe(recipe, ["model.name=vit_base_patch16_sapiens2.fb"])
    config = {"input_size": [3, 96, 96], "interpolation": "lanczos"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": config}))
    with pytest.raises(RecipeError, match=r"data\.interpolation: auto is lanczos for .*; write the value"):
        read_recipe(recipe, [f"model.name=local-dir:{tmp_path}"])


def test_only_auto_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {root: auto}\nrun: {dir: auto}")
    code = "import sys, fastaug.recipe.reading as r; r.read_recipe(sys.argv[1]); print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.yaml")], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"

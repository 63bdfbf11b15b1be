"""Exports: what other programs read back has the network's outputs, names and preprocessing."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils import accuracy

import fastaug
from fastaug.errors import FastaugError, RecipeError
from fastaug.inference import exports
from fastaug.inference.exports import LARGEST_DIFFERENCE, Exported, check_forms, write_forms
from fastaug.inference.model_card import model_card, shown_recipe
from fastaug.inference.saved_model import find_checkpoint, network_of
from fastaug.recipe.schema import Recipe
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.training.model_facts import read_facts
from tests.data.channel_folders import channel_folder

TINY = """
data: {{root: {root}, channels: {channels}, mean: {one}, std: {one}, img_size: 20, threads: 1}}
model: {{name: test_resnet}}
train: {{epochs: 1, batch_size: 8}}
"""


def exported(run: Path) -> Exported:
    path = find_checkpoint(run)
    facts = read_facts(path)
    return Exported(network_of(path, facts), facts, run, "raw")


@pytest.fixture(scope="module")
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms of the tiny run."""
    made = tmp_path_factory.mktemp("made")
    found = write_forms(["hub", "timm", "onnx", "torch"], exported(tiny_run), made)
    assert all(apart <= LARGEST_DIFFERENCE for apart in found.values())
    return made


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ours(tiny_run: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = fastaug.load(tiny_run).model(images)
    return found


def test_timm_loads_the_folder_with_names_and_preprocessing(
    tiny_run: Path, folder: Path, images: torch.Tensor, ours: torch.Tensor
) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(model(images), ours, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == list(fastaug.load(tiny_run).classes)
    assert tuple(model.pretrained_cfg["label_names"]) == fastaug.load(tiny_run).classes
    data = timm.data.resolve_data_config({}, model=model)
    assert tuple(data["input_size"]) == (3, 32, 32)
    assert (data["crop_pct"], data["interpolation"], data["crop_mode"]) == (0.8, "bilinear", "center")


def test_onnxruntime_gives_the_same_at_any_size_of_a_batch(
    folder: Path, images: torch.Tensor, ours: torch.Tensor
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert np.allclose(found, ours[:count], atol=1e-5)
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classes"])[2] == "class10"
    assert json.loads(notes["preprocessing"])["img_size"] == 32


def test_torch_loads_it_without_timm(folder: Path, images: torch.Tensor, ours: torch.Tensor) -> None:
    notes = {"classes": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=notes)
    assert torch.allclose(program.module()(images), ours, atol=1e-5)
    assert json.loads(notes["classes"])[2] == "class10"


def test_a_timm_checkpoint_holds_plain_values_and_the_figures(tiny_run: Path, folder: Path) -> None:
    saved = torch.load(folder / "model_best.pth.tar", weights_only=True)
    result = json.loads((tiny_run / "result.json").read_text())
    assert (saved["arch"], saved["epoch"], saved["version"]) == ("test_resnet", 1, 2)
    assert saved["metric"] == 100 * result["top1"]
    assert saved["args"]["crop_pct"] == 0.8
    arguments = parse_yaml((folder / "args.yaml").read_text())
    recipe = read_facts(find_checkpoint(tiny_run)).recipe
    assert arguments["crop_mode"] == "center"
    assert arguments["batch_size"] * arguments["grad_accum_steps"] == recipe.train.batch_size  # by one process
    rows = list(csv.DictReader(io.StringIO((folder / "summary.csv").read_text())))
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if line["event"] == "select" and line["weights"] == "raw"]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [float(row["eval_top1"]) for row in rows] == [100 * line["top1"] for line in chosen][:2]
    assert all(float(row["train_loss"]) > 0 for row in rows)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # timm's reader leaves closing to the collector
def test_timm_evaluates_it_with_the_top1_of_the_run(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    """What timm's validate.py does, with its own parts; images of the size that the crop takes, where nothing rounds.

    Without class_map.txt timm would count class10 behind class2.
    """
    root = tmp_path / "val"
    shutil.copytree(tiny_run.parent / "images" / "val", root)
    for file in root.rglob("*.jpg"):
        with Image.open(file) as image:
            image.resize((40, 40)).save(file.with_suffix(".png"))
        file.unlink()
    model = timm.create_model("test_resnet", num_classes=12)
    timm.models.load_checkpoint(model, str(folder / "model_best.pth.tar"), use_ema=False)
    dataset = timm.data.create_dataset("", str(tmp_path), split="val", class_map=str(folder / "class_map.txt"))
    dataset.transform = timm.data.create_transform((3, 32, 32), crop_pct=0.8, interpolation="bilinear")
    with torch.no_grad():
        found = [(model.eval()(image[None]), torch.tensor([label])) for image, label in dataset]
    top1 = accuracy(torch.cat([logits for logits, _ in found]), torch.cat([label for _, label in found]))[0]
    ours, transform, classes = fastaug.load(tiny_run)
    with torch.no_grad():
        right = [
            classes[int(ours(transform(Image.open(file))[None]).argmax())] == file.parent.name
            for file in root.rglob("*.png")
        ]
    assert float(top1) == pytest.approx(100 * np.mean(right), abs=1e-4)


def test_what_gives_other_outputs_is_refused(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: Exported, __: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: torch.zeros(len(images), 12)

    monkeypatch.setattr(exports, "FORMS", {"hub": (exports.write_hub, wrong)})
    with pytest.raises(FastaugError, match=r"gives other outputs than the network.*leave hub out"):
        write_forms(["hub"], exported(tiny_run), tmp_path)


def test_a_network_that_cannot_be_traced_is_told(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("data-dependent control flow")

    monkeypatch.setattr(exports, "FORMS", {"onnx": (fails, exports.read_onnx)})
    with pytest.raises(FastaugError, match=r"test_resnet cannot be written so .data-dependent.*leave onnx out"):
        write_forms(["onnx"], exported(tiny_run), tmp_path)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(exports, "find_spec", lambda _: None)
    return


@pytest.mark.usefixtures("missing")
def test_onnx_without_its_packages_is_refused_with_the_remedy(tiny_run: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"onnx, onnxscript, onnxruntime not installed; pip install 'fastaug\[export\]'"
    ):
        check_forms(["onnx"], read_facts(find_checkpoint(tiny_run)))


def test_no_path_of_the_machine_is_in_the_card_s_recipe() -> None:
    recipe = Recipe()
    for section, keys in {
        "data": {"table": "/home/me/t.csv", "class_map": "/home/me/m.csv", "root": "/home/me"},
        "meta": {"reuse": "/home/me/runs/a", "operations": "/home/me/ops.yaml"},
        "augment": {"aa": "file:/home/me/policy.json", "class_weight": "weights.tsv"},
        "distill": {"checkpoint": "/home/me/t.pth"},
        "model": {"checkpoint_keys": "/home/me/keys.yaml"},
    }.items():
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **keys)})
    assert "/home/me" not in str(shown := shown_recipe(recipe))
    assert "class_weight" not in shown.get("augment", {})
    kept = replace(recipe, augment=replace(recipe.augment, aa="rand-m9-mstd0.5-inc1", class_weight="effective"))
    assert shown_recipe(kept)["augment"] == {"aa": "rand-m9-mstd0.5-inc1", "class_weight": "effective"}


def test_the_card_has_result_names_and_recipe_without_paths(tiny_run: Path) -> None:
    result = json.loads((tiny_run / "result.json").read_text())
    text = model_card(exported(tiny_run), ["hub", "timm"], {"hub": 0.0, "timm": 0.0})
    assert f"| top1 | {result['top1']:.4f} |" in text
    assert "- 2: class10" in text
    assert "--crop-mode center --crop-pct 0.8" in text
    assert str(tiny_run.parent) not in text
    recipe = shown_recipe(read_facts(find_checkpoint(tiny_run)).recipe)
    assert recipe["data"] == {"img_size": 32, "crop_pct": 0.8, "threads": 1, "select_fraction": 0.25}


@pytest.mark.slow
@pytest.mark.parametrize("forms", [["hub", "torch"], pytest.param(["onnx"], marks=pytest.mark.slow)])
def test_a_network_that_timm_does_not_have(
    train_tiny: Callable[..., Path], tmp_path: Path, images: torch.Tensor, forms: list[str]
) -> None:
    shaken = "{depth: 8, alpha: 6, shakedrop: 0.5}"
    run = train_tiny(model__name="pyramidnet_110_a84", model__kwargs=shaken, model__ema="false", train__epochs=1)
    found = write_forms(forms, exported(run), tmp_path)
    assert all(apart <= LARGEST_DIFFERENCE for apart in found.values())
    with pytest.raises(RecipeError, match="--to timm: timm's scripts do not have pyramidnet_110_a84"):
        check_forms(["timm"], exported(run).facts)
    text = model_card(exported(run), forms, found)
    assert "fastaug's `pyramidnet_110_a84`" in text
    if "hub" in forms:
        assert "import timm\nfrom fastaug.nets.zoo import offer_to_timm\noffer_to_timm()" in text
        model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.allclose(model(images), fastaug.load(run).model(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_timm_loads_networks_of_other_channels(tmp_path: Path, channels: int) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TINY.format(root=channel_folder(tmp_path / "set", 5), channels=channels, one=[0.5] * channels))
    if channels == 1:
        for file in [*(tmp_path / "set").rglob("*.npy"), *(tmp_path / "set").rglob("*.tif*")]:
            Image.fromarray(np.full((20, 20), len(file.name), np.uint8)).save(file.with_suffix(".png"))
            file.unlink()
    fastaug.train(recipe, **{"run.dir": str(tmp_path / "run")})
    found = write_forms(["hub", "timm", "onnx", "torch"], exported(tmp_path / "run"), tmp_path)
    assert all(apart <= LARGEST_DIFFERENCE for apart in found.values())

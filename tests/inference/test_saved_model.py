"""fastaug.load: the network of a run, its transform and its names."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import fastaug
from fastaug.data.build import build_loader
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loose_files import find_images, index_of
from fastaug.data.sampler import evaluation_requests
from fastaug.errors import RecipeError, StorageError
from fastaug.inference.prediction import parts_of
from fastaug.inference.saved_model import find_checkpoint, transform_of
from fastaug.nets.model import build_model
from fastaug.training import checkpoint
from fastaug.training.model_facts import Preprocessing, read_facts


def images(count: int = 4, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_one_line_gives_model_transform_and_names(tiny_run: Path) -> None:
    model, transform, classes = fastaug.load(tiny_run)
    assert classes[:4] == ("class0", "class1", "class10", "class11")
    assert not model.training
    file = next((tiny_run.parent / "images" / "val" / "class0").iterdir())
    found = model(transform(Image.open(file))[None])
    assert found.shape == (1, 12)
    with pytest.raises(AttributeError, match="it offers"):
        fastaug.lode  # noqa: B018


def test_weights_are_those_asked_for(tiny_run: Path) -> None:
    path = find_checkpoint(tiny_run)
    saved = checkpoint.load(path).weights
    for kind, stem in (("raw", "model"), ("ema", "ema")):
        state = fastaug.load(path, weights=kind).model.state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(state[name], tensor) for name, tensor in saved[stem].items())
    assert not torch.equal(saved["model"]["fc.weight"], saved["ema"]["fc.weight"])


def test_the_best_checkpoint_is_the_one_that_select_chose(tiny_run: Path) -> None:
    best = read_facts(find_checkpoint(tiny_run)).best_step
    assert best is not None
    assert find_checkpoint(tiny_run, "best").name == checkpoint.name_of(best)


def test_timm_prepares_images_as_the_network_was_evaluated(tiny_run: Path) -> None:
    model = fastaug.load(tiny_run).model
    data = timm.data.resolve_data_config({}, model=model)
    assert data["input_size"] == (3, 32, 32)
    assert (data["crop_pct"], data["interpolation"], data["crop_mode"]) == (0.8, "bilinear", "center")
    assert model.pretrained_cfg["label_names"][2] == "class10"


def test_a_small_stem_comes_back_and_the_other_class_is_cut_off(odd_run: Path) -> None:
    model, _, classes = fastaug.load(odd_run)
    path = find_checkpoint(odd_run)
    whole = build_model(read_facts(path).recipe.model, 13)
    whole.load_state_dict(checkpoint.load(path).weights["model"])
    found = model(images())
    assert found.shape == (4, len(classes)) == (4, 12)
    assert torch.allclose(found, whole.eval()(images())[:, :12], atol=1e-6)


def test_a_moving_average_that_is_not_there_is_refused(odd_run: Path) -> None:
    with pytest.raises(RecipeError, match=r"no moving average \(model.ema was off\); take raw"):
        fastaug.load(odd_run, weights="ema")


@pytest.mark.parametrize("kind", ["center", "whole"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_transform_gives_the_pixels_of_the_loader(
    jpegs: Callable[..., Path], tmp_path: Path, kind: str, interpolation: str
) -> None:
    jpegs(tmp_path / "a", 2, 6, (20, 150))
    jpegs(tmp_path / "b", 2, 2, (20, 150), kind="png")
    prepared = Preprocessing(48, kind, 0.875, interpolation, (0.0,) * 3, (1.0,) * 3, "ignore")
    assert_same_pixels([tmp_path / "a", tmp_path / "b"], prepared)


def assert_same_pixels(places: list[Path], prepared: Preprocessing) -> None:
    paths = find_images(places).paths
    parts = parts_of(index_of(paths, ("x", "y"), prepared.exif, 1), ("x", "y"))
    how = {"crop_pct": prepared.crop_pct, "interpolation": prepared.interpolation, "exif": prepared.exif}
    crop = Crop(prepared.crop, prepared.img_size, **how)  # type: ignore[arg-type]
    loader = build_loader(parts, parts.splits.test, crop, Loading(torch.device("cpu"), 16))
    (batch,) = loader.batches(evaluation_requests(parts.splits.test, 16, 1, 0))
    assert len(batch.ids) == len(paths)
    transform = transform_of(prepared)
    for path, ours in zip(paths, batch.images, strict=True):
        with Image.open(path) as image:
            assert torch.equal((transform(image) * 255).round().byte(), ours.permute(2, 0, 1))


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_other_modes_and_turned_images_are_those_of_the_loader(tmp_path: Path, exif: str) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (30, 44, 4), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(drawn[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(drawn[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(drawn).save(tmp_path / "transparent.png")
    Image.fromarray(drawn[..., :3]).quantize(16).save(tmp_path / "palette.gif")
    Image.fromarray(drawn[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    assert_same_pixels([tmp_path], Preprocessing(24, "center", 0.9, "bilinear", (0.0,) * 3, (1.0,) * 3, exif))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="neither a run folder nor a checkpoint"):
        fastaug.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(StorageError, match="no checkpoint can be used: it has none yet"):
        fastaug.load(tmp_path)


def test_a_damaged_checkpoint_is_refused_and_an_older_one_of_the_run_taken(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    last = find_checkpoint(tmp_path / "run")
    (last / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(StorageError, match=r"damaged checkpoint: model\.safetensors has another size"):
        fastaug.load(last)
    assert find_checkpoint(tmp_path / "run") < last


def test_weights_of_another_network_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    path = find_checkpoint(tmp_path / "run")
    text = (path / "model.json").read_bytes().replace(b'"test_resnet"', b'"test_vit"')
    checkpoint.attach(path, "model.json", text)
    with pytest.raises(StorageError, match=r"are not those of test_vit with 12 classes: \d+ tensors are missing"):
        fastaug.load(path)

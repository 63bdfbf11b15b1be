from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastaug.errors import RecipeError
from fastaug.nets.initial_weights import Fit, read_weights
from fastaug.nets.model import build_model
from fastaug.recipe.schema import Model

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of a network for 7 classes."""
    torch.manual_seed(1)
    return dict(timm.create_model("test_resnet", num_classes=7).state_dict())


def fitted(folder: Path, content: object, classes: int = 7, **keys: object) -> tuple[Weights, Fit]:
    """The weights of a network that is begun with a file of `content`, and what is told of it."""
    file, told = folder / "weights.pth", []
    torch.save(content, file)
    model = Model(**{"name": "test_resnet", "initial_checkpoint": str(file), **keys})  # type: ignore[arg-type]
    return dict(build_model(model, classes, told.append).state_dict()), told[0]


def refused(folder: Path, content: object, **keys: object) -> str:
    with pytest.raises(RecipeError) as caught:
        fitted(folder, content, **keys)
    return str(caught.value)


def same(found: Weights, expected: Weights) -> bool:
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.model."])
def test_wrappers_come_off(tmp_path: Path, weights: Weights, prefix: str) -> None:
    found, fit = fitted(tmp_path, {f"{prefix}{name}": value for name, value in weights.items()})
    assert same(found, weights)
    assert fit.share == 1


@pytest.mark.parametrize("entry", ["state_dict", "model", "ema", "model_state_dict"])
def test_weights_are_found_in_what_trainers_save(tmp_path: Path, weights: Weights, entry: str) -> None:
    found, fit = fitted(tmp_path, {"epoch": 3, "optimizer": {"lr": 0.1}, entry: weights})
    assert same(found, weights)
    assert fit.entry == entry
    assert f"weights.pth ({entry})" in fit.lines()[0]


def test_the_average_is_preferred(tmp_path: Path, weights: Weights) -> None:
    raw = {name: torch.zeros_like(value) for name, value in weights.items()}
    found, fit = fitted(tmp_path, {"state_dict": raw, "state_dict_ema": weights})
    assert same(found, weights)
    assert fit.entry == "state_dict_ema"


def test_a_folder_stands_for_its_safetensors(tmp_path: Path, weights: Weights) -> None:
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    assert same(read_weights(str(tmp_path))[0], weights)


def test_a_new_head_is_told(tmp_path: Path, weights: Weights) -> None:
    found, fit = fitted(tmp_path, weights, classes=5)
    assert fit.share == 1
    shape = list(weights["fc.weight"].shape)
    assert fit.head[0] == f"fc.weight ({shape} in the file, [5, {shape[1]}] here)"
    assert any("new head: 2: fc.weight" in line for line in fit.lines())
    assert same(found, {name: value for name, value in weights.items() if not name.startswith("fc.")})
    _, fit = fitted(tmp_path, {name: value for name, value in weights.items() if not name.startswith("fc.")})
    assert fit.head == ["fc.weight", "fc.bias"]
    assert fitted(tmp_path, weights)[1].head == []


def test_what_does_not_fit_is_told(tmp_path: Path, weights: Weights) -> None:
    first, second, *_ = (name for name in weights if name.endswith("conv1.weight"))
    odd = {name: value for name, value in weights.items() if name != first}
    odd |= {second: weights[second][:3], "extra.weight": torch.zeros(2)}
    _, fit = fitted(tmp_path, odd)
    assert (fit.missing, fit.unexpected) == ([first], ["extra.weight"])
    assert len(fit.reshaped) == 1
    assert fit.reshaped[0].startswith(f"{second} ([3, ")
    assert 0.9 < fit.share < 1
    told = "\n".join(fit.lines())
    assert f"not in the file, so new: 1: {first}" in told
    assert "in the file alone, so left out: 1: extra.weight" in told
    assert "of another shape, so new: 1: " in told
    assert fit.as_dict()["missing"] == {"count": 1, "first": [first]}
    assert "model.checkpoint_fit asks for 100%" in refused(tmp_path, odd, checkpoint_fit=1.0)


def test_a_larger_network_s_weights_are_refused_although_all_names_are_there(tmp_path: Path) -> None:
    larger = timm.create_model("resnet34", num_classes=7).state_dict()
    assert set(timm.create_model("resnet18", num_classes=7).state_dict()) < set(larger)
    text = refused(tmp_path, larger, name="resnet18")
    assert "does not fit resnet18: 5" in text
    assert "set model.name to it" in text


def test_none_that_fits_is_refused_at_any_share(tmp_path: Path, weights: Weights) -> None:
    assert "0% of the tensors" in refused(tmp_path, weights, name="test_vit", checkpoint_fit=1e-9)


def test_batchnorm_without_counts_fits(tmp_path: Path, weights: Weights) -> None:
    bare = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    assert fitted(tmp_path, bare)[1].share == 1


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_convolution_takes_other_channels(tmp_path: Path, channels: int) -> None:
    source = dict(timm.create_model("test_efficientnet", num_classes=7).state_dict())
    found, fit = fitted(tmp_path, source, name="test_efficientnet", kwargs={"in_chans": channels})
    assert fit.changed == [f"conv_stem.weight from 3 to {channels} channels"]
    if channels == 1:
        torch.testing.assert_close(found["conv_stem.weight"], source["conv_stem.weight"].sum(1, keepdim=True))
    grey = dict(timm.create_model("test_efficientnet", num_classes=7, in_chans=2).state_dict())
    _, fit = fitted(tmp_path, grey, name="test_efficientnet")
    assert fit.reshaped[0].startswith("conv_stem.weight (")


def test_timm_s_own_filter_fits_what_others_name_and_shape(tmp_path: Path) -> None:
    """A vision transformer at another size: its filter resizes the position embedding."""
    small = dict(timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64).state_dict())
    found, fit = fitted(tmp_path, small, name="vit_tiny_patch16_224", kwargs={"img_size": 96})
    assert fit.share == 1
    assert found["pos_embed"].shape[1] == 37
    assert found["pos_embed"].abs().sum() > 0


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"lr": 0.1}, {}], ids=["tensor", "list", "numbers", "empty"]
)
def test_a_file_without_weights_by_name(tmp_path: Path, content: object) -> None:
    assert "holds no weights by name" in refused(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"\x80\x02X\x01", b"\x80\x02\x95", b"PK\x03\x04"])
def test_a_file_that_is_cut_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(RecipeError, match=r"a\.pth"):
        read_weights(str(tmp_path / "a.pth"))


def test_names_are_mapped(tmp_path: Path, weights: Weights) -> None:
    other = {f"trunk.{name}".replace("bn", "norm"): value for name, value in weights.items()}
    assert "set model.checkpoint_keys" in refused(tmp_path, other)
    found, _ = fitted(tmp_path, other, checkpoint_keys={r"^trunk\.": "", "norm": "bn"})
    assert same(found, weights)
    file = tmp_path / "map.yaml"
    file.write_text("'^trunk\\.': ''\nnorm: bn\n")
    assert same(fitted(tmp_path, other, checkpoint_keys=str(file))[0], weights)

import argparse
import shutil
import socket
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from fastaug.errors import RecipeError
from fastaug.nets.check_names import check_names
from fastaug.nets.initial_weights import Fit
from fastaug.nets.model import build_ema, build_model
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Data, Model, Optim, Recipe


def plain(name: str = "test_resnet", **keys: object) -> Model:
    return Model(name=name, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_outputs_are_the_classes(name: str) -> None:
    network = build_model(plain(name), 7)
    assert network(torch.zeros(2, 3, 160, 160)).shape == (2, 7)


def test_channels_last_is_an_option() -> None:
    weight = build_model(plain(), 2).layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    weight = build_model(plain(channels_last=False), 2).layer1[0].conv1.weight
    assert weight.is_contiguous()


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "resnet18"])
@pytest.mark.parametrize("side", [28])
def test_the_small_stem_keeps_the_extent(name: str, side: int) -> None:
    network = build_model(plain(name, stem="small"), 3)
    stem = network.conv1
    assert (stem.kernel_size, stem.stride, stem.bias) == ((3, 3), (1, 1), None)
    assert isinstance(network.maxpool, torch.nn.Identity)
    images = torch.zeros(2, 3, side, side)
    assert network.maxpool(network.act1(network.bn1(stem(images)))).shape[-2:] == (side, side)
    assert network(images).shape == (2, 3)
    weight = stem.weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.15)  # He, fan out


def test_the_small_stem_needs_a_stem_it_knows() -> None:
    with pytest.raises(RecipeError, match=r"model\.stem: small needs a ResNet-like network .*; test_vit has none"):
        build_model(plain("test_vit", stem="small"), 2)


def test_drop_and_drop_path_reach_the_network() -> None:
    network = build_model(plain("resnet10t", drop=0.25, drop_path=0.5), 2)
    assert network.drop_rate == 0.25
    assert max(getattr(m, "drop_prob", 0.0) or 0.0 for m in network.modules()) == 0.5
    assert build_model(plain("resnet10t"), 2).drop_rate == 0


def test_further_arguments_reach_timm() -> None:
    assert build_model(plain(kwargs={"in_chans": 1}), 2).conv1[0].in_channels == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "resnet5O"},
        {"kwargs": {"no_such_argument": 1}},
        {"kwargs": {"num_classes": 3}},
        {"name": "test_vit", "kwargs": {"img_size": -1}},
    ],
    ids=["name", "argument", "twice", "value"],
)
def test_what_cannot_be_built_is_a_recipe_error(keys: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"model\.name: \w+ cannot be built"):
        build_model(Model(**{"name": "test_resnet", **keys}), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_local_checkpoint_with_another_head_gives_the_backbone(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"weights.{kind}"
    weights = timm.create_model("test_resnet", num_classes=1000).state_dict()
    if kind == "pth":
        torch.save(weights, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    network = build_model(plain(initial_checkpoint=str(file)), 5)
    assert network.fc.weight.shape[0] == 5
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, weights[name]), name


def test_weights_of_colour_images_are_adapted_to_grey_ones_as_timm_does(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet", num_classes=1000).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "weights.safetensors")
    model = plain(initial_checkpoint=str(tmp_path / "weights.safetensors"))
    network, colour = build_model(model, 5, channels=1).eval(), build_model(model, 5).eval()
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 5)
    first, grey = network.pretrained_cfg["first_conv"], torch.rand(2, 1, 64, 64)
    expected = timm.models.adapt_input_conv(1, weights[f"{first}.weight"])
    assert torch.equal(network.get_submodule(first).weight, expected)
    with torch.no_grad():  # of a grey image, they say what the weights for colours said
        colour.fc.load_state_dict(network.fc.state_dict())
        torch.testing.assert_close(network(grey), colour(grey.expand(-1, 3, -1, -1)))


def test_a_missing_checkpoint_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.initial_checkpoint: no file .*absent\.pth"):
        build_model(plain(initial_checkpoint=str(tmp_path / "absent.pth")), 5)


@pytest.mark.parametrize("name", ["", "shard-00001-model-00001-of-00001.safetensors"])
def test_shares_of_a_divided_network_are_to_be_exported(tmp_path: Path, name: str) -> None:
    save_file({"model.a": torch.zeros(2)}, tmp_path / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(
        RecipeError, match=r"model\.initial_checkpoint: .* has shares of .*fastaug export RUN --to timm"
    ):
        build_model(plain(initial_checkpoint=str(tmp_path / name)), 5)


def test_weights_that_do_not_exist_are_a_recipe_error() -> None:
    name = next(n for n in timm.list_models("resnet*") if not timm.models.get_pretrained_cfg(n).has_weights)
    with pytest.raises(RecipeError, match=r"model\.pretrained: no weights.*model\.initial_checkpoint"):
        build_model(plain(name, pretrained=True), 5)


def test_the_moving_average() -> None:
    network = build_model(plain(), 2)
    assert build_ema(plain(), network) is None
    ema = build_ema(plain(ema=True, ema_decay=0.75), network)
    assert ema is not None
    before = network.fc.bias.detach().clone()
    with torch.no_grad():
        network.fc.bias += 1
    ema.update(network)
    torch.testing.assert_close(ema.module.fc.bias, before + 0.25)


def recipe(model: str = "test_resnet", opt: str = "sgd", **keys: object) -> Recipe:
    return Recipe(data=Data(root="x"), model=plain(model, **keys), optim=Optim(opt=opt))


@pytest.mark.parametrize("opt", ["sgd", "SGD", "adamw", "lamb"])
def test_known_names_pass_the_check(opt: str) -> None:
    check_names(recipe(opt=opt))
    check_names(recipe("resnet50.a1_in1k", opt=opt, pretrained=True))  # fetches nothing


def test_unknown_names_are_all_told_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        check_names(recipe("resnet5O", "adamww"))
    model, opt = caught.value.problems
    assert model.startswith("model.name: 'resnet5O' is not known to timm; did you mean ")
    assert "resnet50" in model
    assert opt.startswith("optim.opt: 'adamww' is not known to timm; did you mean ")
    assert "adamw" in opt


def test_the_check_builds_what_has_known_names() -> None:
    with pytest.raises(RecipeError, match=r"model\.stem: small needs"):
        check_names(recipe("test_vit", stem="small"))


def test_weights_of_a_small_stem_are_taken_for_one(tmp_path: Path) -> None:
    weights = build_model(plain(stem="small"), 10).state_dict()
    torch.save(weights, tmp_path / "small.pth")
    fits: list[Fit] = []
    network = build_model(plain(stem="small", initial_checkpoint=str(tmp_path / "small.pth")), 10, fits.append)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert (len(fits), fits[0].share, fits[0].reshaped) == (1, 1, [])
    check_names(Recipe(data=Data(root="x"), model=plain(stem="small", initial_checkpoint=str(tmp_path / "small.pth"))))
    large = timm.create_model("test_resnet", num_classes=10).state_dict()
    torch.save(large, tmp_path / "large.pth")
    network = build_model(plain(stem="small", initial_checkpoint=str(tmp_path / "large.pth")), 10, fits.append)
    assert network.conv1.stride == (1, 1)  # and new: the file has another stem
    assert torch.equal(network.layer1[0].conv1.weight, large["layer1.0.conv1.weight"])


def test_a_local_checkpoint_with_as_many_classes_gives_the_head_too(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet", num_classes=10).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    network = build_model(plain(initial_checkpoint=str(tmp_path / "weights.pth")), 10)
    assert torch.equal(network.fc.weight, weights["fc.weight"])


@pytest.mark.parametrize("kind", ["other network", "text", "empty"])
def test_a_file_without_this_network_s_weights_is_a_recipe_error(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "weights.pth"
    if kind == "other network":
        torch.save({"a": torch.zeros(3)}, file)
    else:
        file.write_text("hello" if kind == "text" else "")
    with pytest.raises(RecipeError, match=r"model\.initial_checkpoint"):
        build_model(plain(initial_checkpoint=str(file)), 10)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.canary, "code of a stranger ran")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
def test_no_code_in_a_file_of_weights_runs(tmp_path: Path, name: str, legacy: bool) -> None:
    canary, file = tmp_path / "canary", tmp_path / name
    content = {"state_dict": plain_weights(), "extra": Evil(canary)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RecipeError, match=r"model\.initial_checkpoint: .*weights\."):
        build_model(plain(initial_checkpoint=str(file)), 5)
    assert not canary.exists()
    torch.load(shutil.copy(file, tmp_path / "copy.pt"), weights_only=False)  # the file is what it is said to be
    assert canary.exists()


def plain_weights() -> dict[str, torch.Tensor]:
    return dict(timm.create_model("test_resnet", num_classes=5).state_dict())


def test_a_checkpoint_of_timm_s_training_script_is_taken(tmp_path: Path) -> None:
    saved = {"state_dict": plain_weights(), "args": argparse.Namespace(model="test_resnet", lr=0.1), "epoch": 3}
    torch.save(saved, tmp_path / "last.pth.tar")
    network = build_model(plain(initial_checkpoint=str(tmp_path / "last.pth.tar")), 5)
    assert torch.equal(network.fc.weight, saved["state_dict"]["fc.weight"])


def full(tmp_path: Path, *overrides: str, name: str = "test_resnet") -> list[str]:
    """The problems that --check=full finds."""
    (tmp_path / "r.yaml").write_text(f"data: {{root: x, img_size: 160}}\nmodel: {{name: {name}}}")
    try:
        check_names(read_recipe(tmp_path / "r.yaml", list(overrides)))
    except RecipeError as error:
        return error.problems
    return []


def test_the_full_check_passes_images_through_the_network(tmp_path: Path) -> None:
    vit = "vit_tiny_patch16_224"
    assert full(tmp_path) == full(tmp_path, "data.img_size=224", name=vit) == []
    assert full(tmp_path, "model.kwargs={img_size: 96}", "data.img_size=96", name=vit) == []
    (found,) = full(tmp_path, "model.kwargs={in_chans: 1}")
    assert found.startswith("model.kwargs: {'in_chans': 1} has arguments that are set otherwise; leave out")
    (found,) = full(tmp_path, "data.img_size=192", name=vit)
    assert found.startswith(f"data.img_size: {vit} does not take RGB images of 192 x 192 pixels (")
    assert found.endswith("; change data.img_size, eval.img_size or model.kwargs")
    (found,) = full(tmp_path, "data.img_size=224", "eval.img_size=256", name=vit)
    assert "256 x 256" in found
    (found,) = full(tmp_path, "model.kwargs={features_only: true}")
    assert found.startswith(
        "model.kwargs: with {'features_only': True}, test_resnet gives list for 2 images, not [2, 10]"
    )


def test_the_full_check_reads_the_initial_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in plain_weights().items()}, file)
    assert full(tmp_path, f"model.initial_checkpoint={file}") == []
    assert full(tmp_path, f"model.initial_checkpoint={file}", "model.stem=small") == []
    (found,) = full(tmp_path, f"model.initial_checkpoint={file}", name="test_vit")
    assert "does not fit test_vit" in found
    (found,) = full(tmp_path, f"model.initial_checkpoint={tmp_path}/absent.pth", name="test_vit")
    assert found.startswith(f"model.initial_checkpoint: no file {tmp_path}/absent.pth; name a file of weights")


def test_networks_of_the_hub_are_not_asked_for_in_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)  # whatever opens a connection fails
    (tmp_path / "r.yaml").write_text("data: {root: x}")
    for name in ("hf-hub:timm/resnet18.a1_in1k", "HF_Hub:a/b"):
        with pytest.raises(RecipeError, match=rf"model\.name: {name} is fetched from the hub"):
            read_recipe(tmp_path / "r.yaml", [f"model.name={name}"])
        check_names(read_recipe(tmp_path / "r.yaml", [f"model.name={name}", "model.pretrained=true"]))

"""The networks that timm does not have: their sizes against the papers, their shapes, what timm's tools ask of them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import register_model
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from fastaug.augment.feature_cutmix import HiddenCutMix
from fastaug.errors import RecipeError
from fastaug.nets.check_names import check_names
from fastaug.nets.model import build_model
from fastaug.nets.parameter_names import in_head
from fastaug.nets.zoo import ENTRIES, offer_to_timm
from fastaug.nets.zoo.pyramid_net import PyramidBlock, PyramidNet
from fastaug.nets.zoo.wide_resnet import WideResNet
from fastaug.recipe.auto_values import preprocessing
from fastaug.recipe.network_names import ZOO
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Augment, Model

WEIGHTS = {  # with 10 and with 100 classes
    "wrn_28_10": (36_479_194, 36_536_884),  # the paper: 36.5 M
    "wrn_40_2": (2_243_546, 2_255_156),  # 2.2 M
    "pyramidnet_110_a84": (3_904_446, 3_913_536),  # the paper, rounding down: 3.8 M
    "pyramidnet_110_a270": (28_485_477, 28_511_307),
    "pyramidnet_200_a240": (26_752_702, 26_844_952),  # CutMix: 26.8 M; the paper, rounding down: 26.6 M
    "pyramidnet_272_a200": (26_210_842, 26_288_692),  # the paper, rounding down: 26.0 M
}
THIN = {"wrn_28_10": {"depth": 10, "widen": 1}, "pyramidnet_200_a240": {"depth": 11, "alpha": 6}}


def thin(name: str, **keys: Any) -> nn.Module:
    """A network of the family of `name`, small enough to run, as a recipe builds it."""
    torch.manual_seed(0)
    kwargs = {**THIN[name], **keys.pop("kwargs", {})}
    return build_model(Model(name=name, kwargs=kwargs, **keys), 5)


def count(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("pyramid") else name for name in ZOO]
)
def test_weights_are_as_many_as_in_the_papers(name: str) -> None:
    offer_to_timm()
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=10)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        few = count(network)
        network.reset_classifier(100)
    assert (few, count(network)) == WEIGHTS[name]


def test_the_papers_way_of_rounding_gives_the_papers_sizes() -> None:
    """26.6 and 26.0 million: what is counted here is their network, but for the rounding of widths."""
    for depth, alpha, published in ((200, 240, 26.6), (272, 200, 26.0)):
        blocks = (depth - 2) // 3
        widths = [int(16 + alpha * number / blocks + 1e-9) for number in range(1, blocks + 1)]
        total, before = 3 * 16 * 9 + 2 * 16, 16
        for width in widths:
            after = 4 * width
            total += 2 * before + before * width + 2 * width + 9 * width**2 + 2 * width + width * after + 2 * after
            before = after
        assert int((total + 2 * before + 10 * before + 10) / 1e5) / 10 == published


def test_a_wide_network_has_the_shape_of_table_1() -> None:
    network = WideResNet(16, 2, num_classes=4)
    assert [len(stage) for stage in (network.layer1, network.layer2, network.layer3)] == [2, 2, 2]
    x = network.stem(torch.zeros(1, 3, 32, 32))
    for stage, shape in ((network.layer1, (32, 32)), (network.layer2, (64, 16)), (network.layer3, (128, 8))):
        x = stage(x)
        assert x.shape == (1, shape[0], shape[1], shape[1])
        assert [block.shortcut is None for block in stage] == [False, True]
    block = network.layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 32, 6, 6)
    assert torch.equal(block(images), block.shortcut(block.bn1(images).relu()))
    with pytest.raises(ValueError, match=r"depth = 17: a WRN has 6 n \+ 4 layers"):
        WideResNet(17, 2)


def test_a_pyramid_widens_at_every_block_and_adds_zeros() -> None:
    network = PyramidNet(20, 12, num_classes=4)  # 9 blocks of 12 / 9 channels more each
    blocks = [block for stage in (network.layer1, network.layer2, network.layer3) for block in stage]
    assert [16 + sum(b.new for b in blocks[: n + 1]) for n in range(9)] == [17, 19, 20, 21, 23, 24, 25, 27, 28]
    assert [block.stride for block in blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    block = PyramidBlock(3, 2, 2, bottleneck=True, shake=nn.Identity()).eval()
    nn.init.zeros_(block.branch[-1].weight)
    images = torch.randn(1, 3, 4, 4)
    out = block(images)
    assert out.shape == (1, 8, 2, 2)
    torch.testing.assert_close(out[:, :3], images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    assert not out[:, 3:].any()
    assert not isinstance(block.branch[0], nn.ReLU)
    with pytest.raises(ValueError, match=r"depth = 21: a PyramidNet has 6 n \+ 2 layers"):
        PyramidNet(21, 12)


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("side", [32, 27])
def test_it_takes_images_of_any_size_and_number_of_channels(name: str, side: int) -> None:
    torch.manual_seed(0)
    network = build_model(Model(name=name, kwargs=THIN[name], drop=0.1), 5, channels=1)
    assert network(torch.randn(2, 1, side, side)).shape == (2, 5)
    assert network.forward_features(torch.randn(2, 1, side, side)).shape[2:] == (-(-side // 4), -(-side // 4))


@pytest.mark.parametrize("name", THIN)
def test_it_has_what_timm_s_tools_ask_for(name: str) -> None:
    network: Any = thin(name).eval()
    images = torch.randn(2, 3, 16, 16)
    maps = network.forward_features(images)
    assert maps.shape == (2, network.num_features, 4, 4)
    assert torch.equal(network.forward_head(maps), network(images))
    features = network.forward_head(maps, pre_logits=True)
    assert torch.equal(network.get_classifier()(features), network(images))
    assert in_head(network, dict(network.named_parameters())) == {"fc.weight", "fc.bias"}
    assert network.get_submodule(network.pretrained_cfg["first_conv"]).in_channels == 3
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert len({group["lr_scale"] for group in groups}) == 5  # stem, three blocks, head
    network.reset_classifier(0)
    assert torch.equal(network(images), features)
    maps = timm.create_model(name, features_only=True, **THIN[name])(images)
    assert [m.shape[-1] for m in maps] == [16, 8, 4]


def test_feature_cutmix_finds_its_layers() -> None:
    network = thin("wrn_28_10")
    HiddenCutMix(network, Augment(cutmix=1.0, mix_layer="layer2"), 16)


@pytest.mark.parametrize("name", THIN)
def test_recomputing_changes_no_gradient(name: str) -> None:
    found: list[list[Tensor]] = []
    for again in (False, True):
        network = thin(name, grad_checkpointing=again, drop_path=0.5 if name.startswith("wrn") else 0.0)
        torch.manual_seed(1)
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        found.append([weight.grad for weight in network.parameters() if weight.grad is not None])
    assert len(found[0]) == len(found[1]) > 20
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_timm_hears_of_them_once() -> None:
    assert tuple(entry.__name__ for entry in ENTRIES) == ZOO
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        offer_to_timm()
        offer_to_timm()
    assert set(ZOO) <= set(timm.list_models())
    assert not set(ZOO) & set(timm.list_models(pretrained=True))


def test_a_network_of_the_same_name_is_replaced_with_a_warning() -> None:
    def wrn_40_2(**_: Any) -> nn.Module:
        return nn.Identity()

    with pytest.warns(UserWarning, match="Overwriting wrn_40_2"):
        register_model(wrn_40_2)
    with pytest.warns(UserWarning, match="Overwriting wrn_40_2"):
        offer_to_timm()
    assert isinstance(timm.create_model("wrn_40_2", widen=1, depth=10), WideResNet)


def problems(tmp_path: Path, *overrides: str) -> list[str]:
    (tmp_path / "r.yaml").write_text("data: {root: x, img_size: 32}")
    with pytest.raises(RecipeError) as caught:
        check_names(read_recipe(tmp_path / "r.yaml", list(overrides)))
    return caught.value.problems


def test_the_full_check_knows_them_and_what_is_near_to_them(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {root: x, img_size: 32}\nmodel: {name: wrn_28_10}")
    check_names(read_recipe(tmp_path / "r.yaml"))
    (found,) = problems(tmp_path, "model.name=wrn_28_1O")
    assert "'wrn_28_1O' is not known to timm; did you mean wrn_28_10" in found
    (found,) = problems(tmp_path, "model.name=pyramidnet_110_a84", "model.kwargs={shakedrop: 1}")
    assert "pyramidnet_110_a84 cannot be built: shakedrop = 1: a probability below 1" in found
    (found,) = problems(tmp_path, "model.name=wrn_40_2", "model.kwargs={shakedrop: 0.5}")
    assert "wrn_40_2 cannot be built" in found
    (found,) = problems(tmp_path, "model.name=wrn_40_2", "model.stem=small")
    assert "model.stem: small needs a ResNet-like network" in found


def test_they_have_no_weights_and_so_nothing_that_auto_could_be() -> None:
    with pytest.raises(RecipeError, match=r"model\.pretrained: no weights for wrn_40_2"):
        build_model(Model(name="wrn_40_2", pretrained=True), 5)
    with pytest.raises(RecipeError, match=r"wrn_40_2 comes without trained weights; write the values"):
        preprocessing("wrn_40_2")

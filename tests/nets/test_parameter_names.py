import pytest
import timm
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.parameter_names import in_head, matched


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=3)


def test_words_and_patterns(network: nn.Module) -> None:
    names = [name for name, _ in network.named_parameters()]
    assert matched(network, "head", "k") == ["fc.weight", "fc.bias"]
    assert matched(network, "backbone", "k") == names[:-2]
    assert matched(network, "*", "k") == names
    assert matched(network, "layer1.0.*", "k") == [name for name in names if name.startswith("layer1.0.")]
    assert in_head(network, ["fc.weight", "layer1.x", "fcx.weight"]) == {"fc.weight"}


def test_a_pattern_without_a_match_is_named(network: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"model\.freeze: 'layer1' matches none of the \d+ parameters .*layer4\.\*"):
        matched(network, "layer1", "model.freeze")
    with pytest.raises(RecipeError, match=r"optim\.lr_scale: 'head': timm names no classifier of Linear"):
        matched(nn.Linear(2, 2), "head", "optim.lr_scale")

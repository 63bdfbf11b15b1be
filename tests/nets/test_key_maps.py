from pathlib import Path

import pytest
import timm
import torch

from fastaug.errors import RecipeError
from fastaug.nets.key_maps import packaged, read_map, renamed
from fastaug.nets.model import build_model
from fastaug.recipe.schema import Model


def lite0_names() -> list[str]:
    """The names that the other implementation gives its tensors: its blocks are numbered through."""
    blocks = sum([1, 2, 2, 3, 3, 4, 1])
    modules = ["_conv_stem", "_bn0", "_conv_head", "_bn1"]
    for block in range(blocks):
        layers = ["_expand_conv", "_bn0"] if block else []
        modules += [f"_blocks.{block}.{name}" for name in [*layers, "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]]
    kept = {"conv": ["weight"], "bn": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]}
    names = [f"{module}.{name}" for module in modules for name in kept["bn" if "_bn" in module else "conv"]]
    return [*names, "_fc.weight", "_fc.bias"]


def test_the_packaged_map_of_lite0_names_every_tensor_of_timm_s() -> None:
    found = renamed(dict.fromkeys(lite0_names()), read_map("efficientnet_lite0"))
    assert set(found) == set(timm.create_model("tf_efficientnet_lite0").state_dict())
    assert "efficientnet_lite0" in packaged()


def test_weights_that_fit_under_a_packaged_map_are_refused_with_its_name(tmp_path: Path) -> None:
    new_names = renamed({name: name for name in lite0_names()}, read_map("efficientnet_lite0"))
    values = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({old: values[new] for new, old in new_names.items()}, tmp_path / "lite0.pth")
    model = Model(name="tf_efficientnet_lite0", initial_checkpoint=str(tmp_path / "lite0.pth"))
    with pytest.raises(RecipeError, match=r"set model\.checkpoint_keys, to efficientnet_lite0; if the rest"):
        build_model(model, 1000, lambda _: None)
    model.name = "test_resnet"
    with pytest.raises(RecipeError, match=r"set model\.checkpoint_keys; if the rest"):
        build_model(model, 1000, lambda _: None)


def test_a_map_is_named_for_the_share_that_fits_under_it_and_never_the_one_that_is_set(tmp_path: Path) -> None:
    """A new head and other channels do not count against it; tensors that the file has beside the network's do."""
    new_names = renamed({name: name for name in lite0_names()}, read_map("efficientnet_lite0"))
    values = timm.create_model("tf_efficientnet_lite0").state_dict()
    weights = {old: values[new] for new, old in new_names.items()}
    model = Model(name="tf_efficientnet_lite0", initial_checkpoint=str(tmp_path / "lite0.pth"), checkpoint_fit=1.0)
    named = r"set model\.checkpoint_keys, to efficientnet_lite0; if the rest"
    torch.save(weights, tmp_path / "lite0.pth")
    model.kwargs = {"in_chans": 1}
    with pytest.raises(RecipeError, match=named):
        build_model(model, 7, lambda _: None)
    torch.save({**weights, "extra": torch.zeros(1)}, tmp_path / "lite0.pth")
    with pytest.raises(RecipeError, match=r"set model\.checkpoint_keys; if the rest"):
        build_model(model, 7, lambda _: None)
    model.checkpoint_keys = "efficientnet_lite0"
    model.kwargs = {}
    with pytest.raises(
        RecipeError, match=r"100% of the tensors do.* set model\.checkpoint_keys; if the rest"
    ) as caught:
        build_model(model, 7, lambda _: None)
    assert "left out: 1: extra" in str(caught.value)


def problem(given: str | dict[str, str], names: tuple[str, ...] = ("a.x", "b.x")) -> str:
    with pytest.raises(RecipeError) as caught:
        renamed(dict.fromkeys(names), read_map(given))
    return str(caught.value)


def test_rules_act_one_after_the_other() -> None:
    assert list(renamed({"one.1": 0, "two.2": 1}, {r"(\d)": r"n\1", "two": "one"})) == ["one.n1", "one.n2"]


def test_bad_maps_are_named(tmp_path: Path) -> None:
    assert "'c' changes none of the 2 names (a.x, b.x" in problem({"c": "d"})
    assert "'b.x' and another name both become 'a.x'" in problem({"^b": "a"})
    assert "'(' is no regular expression" in problem({"(": "a"})
    assert "cannot replace 'a'" in problem({"a": r"\1"})
    assert "no file absent.yaml, and no packaged map (efficientnet_lite0" in problem("absent.yaml")
    assert "is no map of texts" in problem({})
    file = tmp_path / "map.yaml"
    for text, said in (("[1, 2]", "is no map of texts"), ("a: 1", "is no map of texts"), ("a: [", "cannot be read")):
        file.write_text(text)
        assert said in problem(str(file))

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.freezing import Freezing
from fastaug.recipe.schema import Model


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3, zero_init_last=False)


def frozen(network: nn.Module, *, head_first: int = 0, processes: int = 1, **keys: object) -> Freezing:
    model = Model(name="test_resnet", **keys)  # type: ignore[arg-type]
    return Freezing(network, model, head_first=head_first, processes=processes)


def trained(network: nn.Module, freezing: Freezing, steps: int) -> list[dict[str, torch.Tensor]]:
    """Copies of all weights and buffers after each of `steps` updates, as the loop takes them."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.01, weight_decay=0.5)
    draw, seen = torch.Generator().manual_seed(1), []
    for step in range(steps):
        network.train()  # as evaluation leaves it
        freezing.begin(step)
        network(torch.randn(4, 3, 32, 32, generator=draw)).square().mean().backward()
        freezing.end(step)
        optimizer.step()
        optimizer.zero_grad()
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
    return seen


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_without_a_pattern_nothing_is_touched(network: nn.Module) -> None:
    freezing = frozen(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (after,) = trained(network, freezing, 1)
    assert changed(before, after) == set(before)


@pytest.mark.parametrize("freeze_bn", [True, False])
def test_all_but_the_head(network: nn.Module, freeze_bn: bool) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = trained(network, frozen(network, freeze=["backbone"], freeze_bn=freeze_bn), 2)[-1]
    buffers = {name for name, _ in network.named_buffers()}
    assert changed(before, after) == {"fc.weight", "fc.bias"} | (set() if freeze_bn else buffers)


def test_a_pattern_freezes_its_layers_and_their_statistics(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = trained(network, frozen(network, freeze=["conv1.*", "bn1.*", "layer1.*"]), 1)[-1]
    still = {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert changed(before, after) == set(before) - still


@pytest.mark.parametrize("processes", [1, 2])
def test_the_head_first(network: nn.Module, processes: int) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = trained(network, frozen(network, head_first=2, processes=processes), 3)
    assert changed(before, states[1]) == {"fc.weight", "fc.bias"}
    assert changed(states[1], states[2]) == set(before)


def test_processes_that_keep_gradients_learn_the_same(network: nn.Module) -> None:
    other = deepcopy(network)
    one, two = (trained(net, frozen(net, head_first=2, processes=n), 4) for net, n in ((network, 1), (other, 2)))
    assert not changed(one[-1], two[-1])


def test_head_first_and_frozen_layers_add_up(network: nn.Module) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = trained(network, frozen(network, freeze=["layer1.*"], head_first=1), 3)[-1]
    assert changed(before, after) == {name for name in before if not name.startswith("layer1.")}


def test_what_leaves_nothing_to_learn_is_refused(network: nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"model\.freeze: \['\*'\] leaves no weight to train"):
        frozen(network, freeze=["*"])
    with pytest.raises(RecipeError, match=r"model\.head_first_epochs: model\.freeze freezes the head"):
        frozen(deepcopy(network), freeze=["head"], head_first=1)
    with pytest.raises(RecipeError, match=r"model\.freeze: 'blocks\.\*' matches none"):
        frozen(network, freeze=["blocks.*"])

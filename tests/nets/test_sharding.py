"""Which modules of a network are gathered at a time when it is divided over processes."""

import pytest
import timm
import torch
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.sharding import repeated_blocks, shard


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("vit_tiny_patch16_224", "Block", 12),
        ("resnet18", "BasicBlock", 8),
        ("convnext_atto", "ConvNeXtBlock", 12),
    ],
)
def test_blocks_are_those_that_timm_s_networks_repeat(name: str, kind: str, count: int) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    blocks = repeated_blocks(network)
    assert [type(block).__name__ for block in blocks].count(kind) == count
    inside = [module for block in blocks for module in block.modules()]
    assert len(set(inside)) == len(inside)  # none lies in another


def test_a_network_without_repeated_blocks_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(RecipeError, match="plain has no repeated blocks to divide"):
        shard(network, None, "plain")

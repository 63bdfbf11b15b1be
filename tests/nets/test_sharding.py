"""Which modules of a network are gathered at a time when it is divided over processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.sharding import Division, repeated_blocks, shard

SCRIPT = Path(__file__).with_name("divided_training.py")


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


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("dm_nfnet_f0", "is a single number"),
        ("coat_lite_tiny", "is shared by several modules"),
    ],
)
def test_parameters_that_cannot_be_divided_are_named(name: str, parameter: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    with pytest.raises(RecipeError, match=rf"^train.parallel: \S+ of {name} {parameter}.*set it to ddp"):
        shard(network, None, name)


def test_what_stays_whole_is_told_and_much_of_it_is_warned_of() -> None:
    assert Division(12, 0.25).lines() == ["12 blocks, 25% of the weights stay whole (train.parallel)"]
    assert Division(2, 0.8).lines()[1].startswith("warning: ")


def test_all_processes_begin_with_the_first_one_s_weights(in_processes: Callable[..., str]) -> None:
    in_processes(2, SCRIPT, "begin")


@pytest.mark.slow
def test_every_optimizer_steps_shares_as_the_whole(in_processes: Callable[..., str]) -> None:
    in_processes(2, SCRIPT, "optimizers")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "peak"),
    [
        ("fsdp2 bf16 training checkpointing", 16.3),
        ("fsdp2 bf16 training", 60.2),
        ("fsdp2 bf16", 15.5),
        ("fsdp2 no training checkpointing", 15.7),
        ("fsdp2 no training", 18.4),
        ("ddp bf16 training checkpointing", 58.8),  # with autocast's cache
        ("ddp bf16 training", 60.3),
        ("ddp bf16", 58.7),
    ],
)
def test_memory_in_a_forward_pass(in_processes: Callable[..., str], words: str, peak: float) -> None:
    script = Path(__file__).with_name("peak_in_forward.py")
    said = in_processes(2, script, *words.split()).partition("PEAK ")[2].split()[0]
    assert float(said) == pytest.approx(peak, rel=0.05)

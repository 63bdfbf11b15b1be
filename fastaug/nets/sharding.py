"""Fully sharded data parallel (FSDP2): every process keeps a share of each weight, and has a block whole while it runs.

Rajbhandari et al., ZeRO, arXiv:1910.02054 (stage 3); Zhao et al., PyTorch FSDP, arXiv:2304.11277. torch's
`fully_shard` itself, for Accelerate's plugin does nothing on a CPU: one way for both, and tests see it.
"""

from collections import Counter
from typing import NamedTuple

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from fastaug.errors import RecipeError

MUCH = 0.25  # share of the weights outside of all blocks from which on dividing spares little memory


class Division(NamedTuple):
    """How a network was divided: its `blocks`, and the share of the weights outside of them, whole during a pass."""

    blocks: int
    rest: float

    def lines(self) -> list[str]:
        """What a run says of it at its start."""
        told = [f"{self.blocks} blocks, {self.rest:.0%} of the weights stay whole (train.parallel)"]
        if self.rest > MUCH:
            told.append("warning: these are whole on every process during a pass, which spares little memory")
        return told


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that a network repeats, as timm's `blocks`: what is gathered at a time.

    They are the innermost modules, themselves of modules, that stand in an nn.Sequential or nn.ModuleList and are not
    the only one of their class that does: not a whole stage, of which the third has most of a network's weights.
    """
    members = [child for module in network.modules() if _is_list(module) for child in module.children()]
    composite = [member for member in members if not _is_list(member) and next(member.children(), None) is not None]
    count = Counter(map(type, composite))
    repeated = [block for block in composite if count[type(block)] > 1]
    found = set(repeated)
    return [block for block in repeated if found.isdisjoint(set(block.modules()) - {block})]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def shard(network: nn.Module, mesh: DeviceMesh, name: str) -> Division:
    """Divides the weights of `network`, in place, over the processes of `mesh`; they are DTensors from here on.

    A network on the host gets to the mesh's device block by block, so that the device never holds it whole. Weights
    lose the memory format channels_last, which cannot be divided. RecipeError for a network (`name`) without repeated
    blocks, or with a parameter that cannot be divided.
    """
    blocks = repeated_blocks(network)
    if not blocks:
        raise RecipeError([f"train.parallel: {name} has no repeated blocks to divide; set it to ddp"])
    _check_parameters(network, name)
    division = Division(len(blocks), 1 - sum(map(_size, blocks)) / _size(network))
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The rest, which would stay whole behind a forward pass without a backward one: an evaluation.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    return division


def _check_parameters(network: nn.Module, name: str) -> None:
    """RecipeError for a parameter without dimensions, or of several modules: `fully_shard` knows neither."""
    places = Counter(parameter for _, parameter in network.named_parameters(remove_duplicate=False))
    for own, parameter in network.named_parameters():
        if parameter.ndim == 0 or places[parameter] > 1:
            reason = "is a single number" if parameter.ndim == 0 else "is shared by several modules"
            raise RecipeError([f"train.parallel: {own} of {name} {reason}, which fsdp2 cannot divide; set it to ddp"])


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

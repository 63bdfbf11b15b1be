"""Fully sharded data parallel (FSDP2): every process keeps a share of each weight, and has a block whole while it runs.

Rajbhandari et al., ZeRO, arXiv:1910.02054 (stage 3); Zhao et al., PyTorch FSDP, arXiv:2304.11277. torch's
`fully_shard` itself, for Accelerate's plugin does nothing on a CPU: one way for both, and tests see it.
"""

from collections import Counter

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from fastaug.errors import RecipeError


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


def shard(network: nn.Module, mesh: DeviceMesh, name: str) -> None:
    """Divides the weights of `network`, in place, over the processes of `mesh`; they are DTensors from here on.

    A network on the host gets to the mesh's device block by block, so that the device never holds it whole. Weights
    lose the memory format channels_last, which cannot be divided. RecipeError for a network (`name`) without repeated
    blocks.
    """
    blocks = repeated_blocks(network)
    if not blocks:
        raise RecipeError([f"train.parallel: {name} has no repeated blocks to divide; set it to ddp"])
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # The rest, which would stay whole behind a forward pass without a backward one: an evaluation.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)

"""In two processes, by argv[1]: unequal weights are made equal ("begin"), each optimizer steps shares as the whole."""

import sys
from copy import deepcopy

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastaug.console import Console
from fastaug.distributed import sharding_mesh
from fastaug.nets.model import build_model
from fastaug.nets.optim import build_optimizer
from fastaug.nets.sharding import shard
from fastaug.recipe.schema import SHARDABLE_OPTIMIZERS, Model, Optim, Recipe, Train
from fastaug.training.build import build_average


class Block(nn.Module):
    """Repeated: its five rows are not divided evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(5, 5), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        """`x` and what the block adds [N, 5]."""
        added: Tensor = self.norm(self.inner(x)).tanh()
        return x + added


def whole(network: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers, put together."""
    return {name: getattr(v, "full_tensor", lambda v=v: v)() for name, v in network.state_dict().items()}


def begins_equal(accelerator: Accelerator) -> bool:
    """Whether both processes begin with the first one's weights, in the moving average too."""
    model = Model(name="test_vit", ema=True)
    torch.manual_seed(0)
    wanted = build_model(model, 3).state_dict()
    torch.manual_seed(accelerator.process_index)
    network = build_model(model, 3)
    ema = build_average(Recipe(model=model, train=Train(parallel="fsdp2")), network, accelerator, Console(main=False))
    assert ema is not None
    return all(torch.equal(value, wanted[name]) for net in (network, ema.module) for name, value in whole(net).items())


def trained(network: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights after three updates by optimizer `name`."""
    optimizer = build_optimizer(Optim(opt=name, lr=0.01, weight_decay=0.1), network)
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        network(torch.randn(4, 5, generator=draw)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(network)


def differing(accelerator: Accelerator) -> list[str]:
    """The optimizers whose weights are not those of the whole network."""
    torch.manual_seed(0)
    first, found = nn.Sequential(Block(), Block(), nn.Linear(5, 3)), []
    for name in SHARDABLE_OPTIMIZERS:
        alone, divided = deepcopy(first), deepcopy(first)
        assert shard(divided, sharding_mesh(accelerator), "two blocks").blocks == 2
        one, other = trained(alone, name), trained(divided, name)
        moved = any(not torch.equal(one[key], value) for key, value in first.state_dict().items())
        if not moved or any(not torch.allclose(one[key], other[key], atol=1e-6) for key in one):
            found.append(name)
    return found


if __name__ == "__main__":
    joined = Accelerator(cpu=True)
    assert joined.num_processes == 2
    if sys.argv[1] == "begin":
        assert begins_equal(joined)
    else:
        assert not (found := differing(joined)), found
    joined.end_training()

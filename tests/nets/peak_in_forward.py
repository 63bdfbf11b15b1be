"""Peak MB of the tensors that operations make in a forward pass of a divided ViT-S, seen at the end of each block.

argv: train.parallel and train.precision (of the Accelerator: autocast and its cache), then words of training,
checkpointing.
"""

import sys
from typing import Any

import timm
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastaug.distributed import build_accelerator, sharding_mesh
from fastaug.nets.sharding import shard
from fastaug.recipe.schema import Recipe, Train


class Alive(TorchDispatchMode):
    """The memory that operations made and that something still holds."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, inputs: Any = (), options: Any = None) -> Any:
        out = operation(*inputs, **(options or {}))
        for tensor in tree_iter(out):
            if type(tensor) is Tensor:
                storage = StorageWeakRef(tensor.untyped_storage())
                self._made[storage.cdata] = storage
        return out

    def look(self, *_: object) -> None:
        """Notes what is alive now; FSDP frees storages by making them empty."""
        self._made = {key: made for key, made in self._made.items() if not made.expired()}
        sizes = (torch.UntypedStorage._new_with_weak_ptr(key).nbytes() for key in self._made)
        self.peak = max(self.peak, sum(sizes))


if __name__ == "__main__":
    parallel, precision, *words = sys.argv[1:]
    accelerator = build_accelerator(Recipe(train=Train(parallel=parallel, precision=precision)))  # type: ignore[arg-type]
    network = timm.create_model("vit_small_patch16_224", num_classes=10, img_size=32)
    network.set_grad_checkpointing("checkpointing" in words)
    shard(network, sharding_mesh(accelerator), "vit_small_patch16_224")
    model, alive = accelerator.prepare_model(network, evaluation_mode=True), Alive()
    for block in network.blocks:
        block.mlp.fc2.register_forward_hook(alive.look)
    network.train("training" in words)
    with torch.set_grad_enabled("training" in words), alive:
        model(torch.randn(2, 3, 32, 32))
    print(f"PEAK {alive.peak / 1e6:.1f}")
    accelerator.end_training()

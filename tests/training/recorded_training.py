"""A training that keeps what its network got: of every forward pass the ids, the very input and the target.

As a script, of one process of a job: recorded_training.py FOLDER RECIPE key=value ...; it writes FOLDER/RANK.pt.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from fastaug.augment.pipeline import BatchAugment
from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

Passes = list[dict[str, Any]]


@contextmanager
def recorded() -> Iterator[Passes]:
    """Inside, each forward pass of a training is added to the list, in the order in which they come."""
    passes: Passes = []
    waiting: list[tuple[Any, Any, Any]] = []
    made = BatchAugment.training

    def training(self: BatchAugment, batch: Any, epoch: int) -> Any:
        inputs, target = made(self, batch, epoch)
        waiting[:] = [(batch.ids, inputs, target)]
        return inputs, target

    def before_forward(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if waiting and arguments and isinstance(arguments[0], torch.Tensor):
            ids, inputs, target = waiting[0]
            if arguments[0].data_ptr() == inputs.data_ptr():
                waiting.clear()
                kept = [None if part is None else part.clone() for part in target]
                passes.append({"ids": ids.tolist(), "inputs": arguments[0].detach().clone(), "target": kept})

    hook = register_module_forward_pre_hook(before_forward)
    BatchAugment.training = training  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        BatchAugment.training = made  # type: ignore[method-assign]
        hook.remove()


if __name__ == "__main__":
    with recorded() as found:
        code = run(read_recipe(sys.argv[2], sys.argv[3:]))
    torch.save(found, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
    sys.exit(code)

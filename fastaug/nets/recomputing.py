"""Gradient checkpointing: activations computed again in the backward pass instead of kept; slower, in less memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastaug.errors import RecipeError


def use_checkpoints(network: nn.Module, name: str) -> None:
    """Turns timm's gradient checkpointing on; RecipeError for a network without it."""
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            [f"model.grad_checkpointing: {name} does not have it ({error}); turn it off, and raise train.accumulate"]
        ) from error


@contextmanager
def backward_pass(network: nn.Module, *, recomputes: bool) -> Iterator[None]:
    """A backward pass in which BatchNorm layers do not count a batch once more that is computed again.

    They normalise by it as before, and keep their statistics by a momentum of 0. Without `recomputes` nothing is done.
    """
    counting = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training] if recomputes else []
    before = [(module.momentum, _count(module)) for module in counting]
    for module in counting:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, (momentum, count) in zip(counting, before, strict=True):
            module.momentum = momentum
            if count is not None and module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(count)


def _count(module: _BatchNorm) -> Tensor | None:
    return None if module.num_batches_tracked is None else module.num_batches_tracked.clone()

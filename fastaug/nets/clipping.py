"""Gradient clipping as timm has it: by global norm, by value, or adaptively by the norm of each unit's weights."""

import math
from typing import Any

from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_value_

from fastaug.nets.parameter_names import in_head
from fastaug.recipe.schema import Optim


class Clipping:
    """The gradient clipping of a recipe.

    `agc` (Brock et al., arXiv:2102.06171) keeps the gradient of each unit (row of a weight) below clip_grad times the
    norm of its weights; the classifier is left out, as the paper does.
    """

    def __init__(self, optim: Optim, network: nn.Module) -> None:
        self._mode, self._limit = optim.clip_mode, math.inf if optim.clip_grad is None else optim.clip_grad
        head = in_head(network, [name for name, _ in network.named_parameters()]) if self._mode == "agc" else set()
        self._clipped = [parameter for name, parameter in network.named_parameters() if name not in head]

    def __call__(self, accelerator: Any, network: nn.Module) -> Tensor:
        """Clips the gradients of `network`, Accelerate's, loss scale taken off; their global norm before."""
        by_norm = self._limit if self._mode == "norm" else math.inf
        norm: Tensor = accelerator.clip_grad_norm_(network.parameters(), by_norm)
        if isinstance(norm, DTensor):  # of a network divided over processes, all of which call this
            norm = norm.full_tensor()
        if self._mode == "value":
            clip_grad_value_(self._clipped, self._limit)
        elif self._mode == "agc":
            adaptive_clip_grad(self._clipped, self._limit)
        return norm

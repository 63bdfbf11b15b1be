"""Tables by stable id: numbers learned for every training image, moved only where a batch met the image."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class SampleTable(Protocol):
    """A table by stable id: learned numbers of every image. A learned part may keep several, each under a name."""

    def rows(self, ids: Tensor) -> Tensor:
        """The rows [n, ...] of `ids` [n] (on the host), a leaf of their own: gradients stop here."""

    def move(self, ids: Tensor, gradient: Tensor) -> None:
        """One step against the hypergradient [n, ...] in the rows of `ids` [n], those of all processes, each once.

        `ids` may lie on any device.
        """


class WeightTable(nn.Module):
    """The table of loss weights: one in `bounds` for each of `size` ids, 1 at the start.

    The weights are the numbers that move, cut off at the bounds, and 0 is one of them: behind a logistic function a
    sample near a bound hardly moves any more, and with a small weight a wrong label is learned all the same, later
    (docs/meta.md).
    """

    weight: Tensor

    def __init__(self, size: int, lr: float, bounds: tuple[float, float] = (0.0, 2.0)) -> None:
        super().__init__()
        self.lr, self.bounds = lr, bounds
        self.register_buffer("weight", torch.ones(size))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Rows of ids by number: images behind them, which are only evaluated, may have come or gone since."""
        name = f"{prefix}weight"
        if name in state_dict:
            stored, rows = state_dict[name], torch.ones_like(self.weight)
            known = min(len(rows), len(stored))
            rows[:known] = stored[:known]
            state_dict = {**state_dict, name: rows}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, ids: Tensor) -> Tensor:
        """Weights [n] of `ids` [n] (on the host)."""
        return self.weight[ids.to(self.weight.device)]

    def rows(self, ids: Tensor) -> Tensor:
        """The weights [n] of `ids`, a leaf."""
        return self(ids).requires_grad_()

    def move(self, ids: Tensor, gradient: Tensor) -> None:
        """One step of at most 3 lr against the hypergradient [n] of the weights of `ids` [n].

        Where smaller weights for the whole batch would help (a lower learning rate in disguise), their mean, weighted
        by the weights, is taken out of the gradient: weights cannot all shrink. Then it is divided by its root mean
        square and clipped at 3, so that the step knows no scale. Samples whose gradient is not finite stay.
        """
        ids = ids.to(self.weight.device)
        weights, finite = self.weight[ids], gradient.isfinite()
        gradient = torch.where(finite, gradient, 0)
        shrinking = (weights * gradient).sum() / (weights * finite).sum().clamp_min(torch.finfo(weights.dtype).tiny)
        gradient = torch.where(finite, gradient - shrinking.clamp_min(0), 0)
        scale = (gradient.square().sum() / finite.sum().clamp_min(1)).sqrt()
        step = self.lr * (gradient / torch.where(scale > 0, scale, 1)).clamp(-3, 3)
        self.weight[ids] = (weights - step).clamp(*self.bounds)

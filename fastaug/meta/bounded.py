"""Bounded learned numbers: a logistic function keeps each between its bounds."""

import math

import torch
from torch import Tensor, nn


class Bounded(nn.Module):
    """A learned number in (low, high), a logistic function of the parameter `raw`; on a logarithmic scale if `log`."""

    def __init__(self, initial: float, low: float, high: float, *, log: bool = False) -> None:
        super().__init__()
        self.log = log
        self.low, self.high = (math.log(low), math.log(high)) if log else (low, high)
        share = ((math.log(initial) if log else initial) - self.low) / (self.high - self.low)
        if not 0 < share < 1:
            raise ValueError(f"the initial value {initial} must be inside of ({low}, {high})")
        self.raw = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Tensor:
        """The number, on the graph of `raw`."""
        inside = self.low + (self.high - self.low) * torch.sigmoid(self.raw)
        return inside.exp() if self.log else inside

    def saturation(self) -> Tensor:
        """How near the number is to one of its bounds: 0 in the middle, 1 at a bound."""
        return (2 * torch.sigmoid(self.raw) - 1).abs()

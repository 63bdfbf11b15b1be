"""ShakeDrop (Yamada et al. 2019, arXiv:1802.02375): a residual branch scaled at random, forward and backward apart."""

import torch
from torch import Tensor, nn


class ShakeDrop(nn.Module):
    """In training F(x) times b + alpha - b alpha, its gradient times b + beta - b beta; in evaluation times E = keep.

    b is 1 with probability `keep`, alpha uniform in [-1, 1], beta in [0, 1] (section 3 of the paper). b is drawn once a
    pass, so that a block is shaken for the whole micro-batch or not at all, alpha and beta for each image.

    All is drawn in the forward pass from torch's generator, which the training loop seeds before each: a continued run,
    a recomputed block and a meta step draw the same. Drawn in float32 whatever the branch's type, for the same reason.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return self.keep * branch
        drawn = torch.rand(2 * len(branch) + 1, device=branch.device)
        uniform = drawn[1:].to(branch.dtype).view(2, -1, *[1] * (branch.ndim - 1))
        kept = drawn[0] < self.keep
        there = torch.where(kept, 1.0, 2 * uniform[0] - 1)
        back = torch.where(kept, 1.0, uniform[1])
        # Its value is there * branch; a derivative, in either mode of differentiation, goes through the first term.
        return branch * back + (branch * (there - back)).detach()

    def extra_repr(self) -> str:
        return f"keep={self.keep:.4g}"

"""Evidence on each operation of a policy, gathered while a network trains: does it harm, and is it hard to learn from?

One step of training says next to nothing on what an operation does for the network in the end, but two things it shows
over many samples. *Harm*: a sample's own term of the hypergradient, s_i = <u, grad_w l_i>, is the first-order change of
the validation loss that training on it brings; operations that destroy the label have a larger mean than the others.
Samples with large losses have large terms of either sign, so terms are divided by the norm of the loss's gradient in
the logits (and a constant, for it may vanish): noise falls by a third. *Difficulty*: the mean training loss of the
samples that show an operation; what is as easy as the image itself teaches nothing new (Gontijo-Lopes et al. 2021, call
the two affinity and diversity). Both are kept as z: how many of its standard errors an operation's mean is above that
of all samples.

An operation's probability falls by the odds that it harms, where they are above one. With normal noise the likelihood
is exp(z^2 / 2) times as large at the mean that was seen as at 0, which is the largest Bayes factor for harm there can
be; before anything is seen the odds are one to the number of operations, of which one may be expected to harm.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

FLAT = 0.05  # added to the norm of a loss's gradient in the logits, which is at most sqrt(2)
LARGEST = 3.0  # root mean squares of a batch beyond which a value counts as so many


class Observation(NamedTuple):
    """What an update has shown of n samples: `harm` [n] as above, and training `loss` [n]."""

    harm: Tensor
    loss: Tensor


def observed(share: Tensor, losses: Tensor, steepness: Tensor) -> Observation:
    """From each sample's term of the hypergradient [n], its training loss and the norm of that one's gradient in z."""
    return Observation(share / (steepness + FLAT), losses)


class Evidence(nn.Module):
    """Sums over samples by what they show: 0 nothing, k operation k; all are in a checkpoint."""

    count: Tensor
    harm: Tensor
    loss: Tensor
    squares: Tensor
    samples: Tensor

    def __init__(self, operations: int) -> None:
        super().__init__()
        for name in ("count", "harm", "loss"):
            self.register_buffer(name, torch.zeros(operations + 1, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(2, dtype=torch.float64))  # of harm and loss, over all samples
        self.register_buffer("samples", torch.zeros((), dtype=torch.float64))

    def add(self, op: Tensor, seen: Observation, over_processes: Callable[[Tensor], Tensor]) -> None:
        """Adds samples that show the operations `op` [n, any]; a sample counts once for each one that it shows."""
        shown = torch.zeros(len(op), len(self.count), dtype=torch.float64).scatter_(1, op, 1)
        harm, loss = (self._scaled(values.double().cpu(), over_processes) for values in seen)
        sums = torch.stack([shown.sum(0), harm @ shown, loss @ shown])
        squares = torch.stack([harm.square().sum(), loss.square().sum(), harm.new_tensor(float(len(harm)))])
        sums, squares = over_processes(sums), over_processes(squares)
        for kept, new in zip((self.count, self.harm, self.loss), sums, strict=True):
            kept += new
        self.squares += squares[:2]
        self.samples += squares[2]

    @staticmethod
    def _scaled(values: Tensor, over_processes: Callable[[Tensor], Tensor]) -> Tensor:
        """Values [n] less their mean, in root mean squares of the update's samples in all processes, cut off."""
        total, count = over_processes(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))
        centred = values - total / count
        size = (over_processes(centred.square().sum()) / count).sqrt()
        return (centred / torch.where(size > 0, size, 1)).clamp(-LARGEST, LARGEST).nan_to_num()

    def scores(self) -> tuple[Tensor, Tensor]:
        """z of harm and of difficulty, [1 + operations] each; 0 before there is a sample."""
        found = []
        for sums, squares in zip((self.harm, self.loss), self.squares, strict=True):
            spread = (squares / self.samples.clamp_min(1)).sqrt()
            error = spread / self.count.clamp_min(1).sqrt()
            found.append(torch.where((self.count > 1) & (error > 0), sums / self.count.clamp_min(1) / error, 0))
        return found[0], found[1]

    def falls(self) -> Tensor:
        """By how much each operation's log probability is to fall, [operations], in nats: z^2 / 2 - ln(operations).

        At least 0, and 0 without a positive z. Of 23 operations it begins with z = 2.5; a quarter is left at 3 and a
        tenth at 3.3.
        """
        harm = self.scores()[0][1:]
        return (harm.clamp_min(0).square() / 2 - math.log(len(harm))).clamp_min(0)

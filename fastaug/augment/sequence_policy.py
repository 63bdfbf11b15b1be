"""A policy that learns which operations follow one another: one probability for each sequence, not for each slot.

Order and company of operations can matter (a crop before a blur), which slots that draw on their own cannot learn. The
table has (1 + operations) ** slots entries.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.augment.shared_policy import Draws, SharedPolicy
from fastaug.recipe.operation_files import LARGEST_TABLE
from fastaug.seeding import IdArray, Key


class SequencePolicy(SharedPolicy):
    """A SharedPolicy whose logits [1, (1 + operations) ** slots] belong to sequences; the last slot counts fastest."""

    def logits_of(self, identity: float) -> Tensor:
        """Those that give the sequences the probabilities that independent slots would give them."""
        if self.kinds**self.slots > LARGEST_TABLE:
            raise ValueError(
                f"{self.kinds}^{self.slots} = {self.kinds**self.slots:,} sequences are more than {LARGEST_TABLE:,}; "
                "take fewer operations or slots"
            )
        table = torch.zeros(1)
        for row in super().logits_of(identity):
            table = (table[:, None] + row).flatten()
        return table[None]

    def probabilities(self) -> Tensor:
        """Probabilities of no operation and of each one in each slot, whatever the others draw: [slots, kinds]."""
        table = self.scores().softmax(1).view([self.kinds] * self.slots)
        return torch.stack([table.transpose(0, s).reshape(self.kinds, -1).sum(1) for s in range(self.slots)])

    def untouched(self) -> Tensor:
        """The probability of the sequence that draws none in every slot."""
        return self.scores().softmax(1)[0, 0]

    def log_probability(self, draws: Draws) -> Tensor:
        """Log probability of each sample's sequence, [N], on the graph of the logits."""
        return self.scores().log_softmax(1)[0][self._number(draws.op)]

    def drawn_mean(self, draws: Draws, values: Tensor) -> Tensor:
        """What `values`, one for each logit, are for the sequence drawn: [N]."""
        return values[0][self._number(draws.op)]

    def _number(self, op: Tensor) -> Tensor:
        """The number of each sequence in the table: [N]."""
        powers = torch.tensor([self.kinds**s for s in reversed(range(self.slots))])
        return (op * powers).sum(1).to(self.logits.device, non_blocking=True)

    def _perturbed(self, key: Key, ids: IdArray) -> Tensor:  # noqa: ARG002
        """ValueError: the relaxed form, a mixture of all sequences, is too dear."""
        raise ValueError("sequences have no relaxed form; learn them by score function")

    def _chosen(self, u: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """One sequence by the first uniform number of each sample."""
        number = np.searchsorted(bounds[0], u[:, 0], side="right")
        return np.stack(np.unravel_index(number, [self.kinds] * self.slots), 1).astype(np.int64)

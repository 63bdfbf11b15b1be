"""Augmentation: from a uint8 batch to the network's input and its soft target.

May not know how anything is learned, gradients of networks, or the meta step. Nothing is imported before it is asked
for.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastaug.augment.learned_policy import LearnedPolicy


def load_policy(path: str | Path, seed: int = 0) -> "LearnedPolicy":
    """A learned policy, from the run folder or policy.json `path`, as a function of a batch.

    policy(images [N,3,S,S] in [0, 1], ids [N], epoch) gives images [N,3,S,S]. What it draws is a function of (`seed`,
    epoch, id). RecipeError says what of the file is wrong. See docs/policies.md.
    """
    from fastaug.augment.learned_policy import read_learned_policy

    return read_learned_policy(path, seed)

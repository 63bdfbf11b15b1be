"""A learned policy in a loop of one's own: a callable on float batches, read from the policy.json that a run wrote.

    policy = fastaug.augment.load_policy("runs/learned/policy.json")
    images = policy(images, ids, epoch)          # float [N,3,S,S] in [0, 1], before normalisation

Every draw is a function of (seed, epoch, id), as in a run.
"""

from pathlib import Path

import torch
from torch import Tensor

from fastaug.augment.policy_settings import filled_policy
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.errors import RecipeError
from fastaug.recipe.policy_file import AS_WRITTEN, read_policy_file
from fastaug.seeding import Key, Stream

OVERSHOOT = 0.5  # of an interpolation, beyond [0, 1]
PART = "policy"  # the name and the kind of the shared policy in a policy file


class LearnedPolicy:
    """A frozen shared policy as a function of a batch."""

    def __init__(self, policy: SharedPolicy, seed: int = 0) -> None:
        self.policy, self.seed = policy.requires_grad_(False), seed
        self._looked = False  # at the range of the first images

    @torch.no_grad()
    def __call__(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Augmented float images [N,3,S,S] in [0, 1]; `ids` [N]: the images' numbers in their set, on the host.

        ValueError where the first images given lie far outside of [0, 1]: some operations would clamp them, some not.
        """
        if not self._looked and images.numel():
            _check_range(images)
            self._looked = True
        return self.policy.apply(images, self.policy.sample(Key(self.seed, epoch, Stream.LEARNED), ids))


def _check_range(images: Tensor) -> None:
    low, high = images.min().item(), images.max().item()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(
            f"images: must lie in [0, 1], found {low:.3g} to {high:.3g}; give them before normalisation, divided by 255"
        )


def read_learned_policy(path: str | Path, seed: int = 0) -> LearnedPolicy:
    """The shared policy in a policy file or run folder; a padding of mean colour takes that of the file's data.

    RecipeError says what of the file is wrong.
    """
    file = read_policy_file(Path(path))
    if PART not in file.pieces:
        found = ", ".join((*file.pieces, *file.tables)) or "nothing"
        raise RecipeError([f"{file.path}: parts.{PART}: is missing, {found} is there; learn with meta.learn=[policy]"])
    piece, mean = file.pieces[PART], file.data.get("mean")
    try:
        if piece.kind != PART:
            raise ValueError(f"kind: {piece.kind!r:.100} is no kind of shared policy, {PART!r} is; {AS_WRITTEN}")
        if not (isinstance(mean, list) and len(mean) == 3 and all(map(_is_colour, mean))):
            raise ValueError(f"data.mean: must be three numbers of -1000 to 1000, found {mean!r:.100}")
        policy = filled_policy(piece.settings, piece.values, mean)
    except ValueError as error:
        where = "" if str(error).startswith("data.") else f"parts.{PART}."
        raise RecipeError([f"{file.path}: {where}{error}"]) from None
    return LearnedPolicy(policy, seed)


def _is_colour(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e3

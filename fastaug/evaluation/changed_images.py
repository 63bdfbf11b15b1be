"""Held-out images under changes: each change in turn is what a loader does to images once they are cut out."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastaug.seeding import Key

Pixels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]


class Change(Protocol):
    """One change of images of S x S pixels; what happens to an image is a function of (seed, id)."""

    def values(self, seed: int, ids: Ids) -> Sequence[Any]:
        """What is drawn for each of the images `ids` [N]."""

    def apply_one(self, image: Pixels, value: Any) -> Pixels:
        """uint8 [S, S, 3] under what was drawn; `image` itself stays as it is."""


class ChangesByEpoch:
    """A host transform: of a loader that is asked for "epoch" n, images come under change number n."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes

    def sample(self, key: Key, ids: npt.ArrayLike) -> list[Any]:
        """The change and what it draws, for each of `ids` [N]."""
        change = self.changes[key.epoch]
        return [(change, value) for value in change.values(key.seed, np.asarray(ids))]

    def apply_one(self, image: Pixels, value: Any) -> Pixels:
        """uint8 [S, S, 3] under a change."""
        change, drawn = value
        changed: Pixels = change.apply_one(image, drawn)
        return changed

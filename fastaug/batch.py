"""A batch of decoded images: what every loader delivers and the augmentation takes."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of decoded images and which ones they are.

    `images` [N, S, S, C] uint8 on the training device; `labels` [N] int64 on the same device; `ids` [N] int64 on the
    host, where keyed draws are made.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    draws: Tensor  # [N] int64 on the host: what keyed draws are made for; the ids unless images are repeated

"""Occlusion curves: accuracy and confidence of a network against how much of an image it sees.

The figure of Soft Augmentation (Liu et al., CVPR 2023, arXiv:2211.04625): a network should not be surer than right of
what it hardly sees. Images are occluded by shifting them out of view, as that paper's crops do, or by a box; what is
uncovered has the mean colour. Each image keeps its direction and the place of its box along the whole curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.seeding import Key, Stream, uniform

Pixels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
WAYS = ("shift", "box")


@dataclass(frozen=True)
class Occlusion:
    """A share `visible` of each image of `side` x `side` pixels stays in view, up to whole pixels; the rest is `fill`.

    `way` "shift": by (dy, dx) with (1 - |dy| / S) (1 - |dx| / S) = visible, uniform in the share that either has of
    log(visible), and in the four signs. "box": a square, its place uniform among those wholly inside.
    """

    way: str
    visible: float
    side: int
    fill: tuple[int, ...]

    def values(self, seed: int, ids: Ids) -> list[tuple[int, ...]]:
        """(dy, dx) of each image, or (top, left, side) of its box."""
        if self.way == "shift":
            split, sign_y, sign_x = uniform(Key(seed, 0, Stream.OCCLUDING_SHIFT), ids, 3).T
            lost = 1 - self.visible ** np.stack([split, 1 - split])
            shifts = np.rint(self.side * lost) * np.where(np.stack([sign_y, sign_x]) < 0.5, -1, 1)
            return [(int(dy), int(dx)) for dy, dx in shifts.T]
        size = round(self.side * (1 - self.visible) ** 0.5)
        places = np.floor(uniform(Key(seed, 0, Stream.OCCLUDING_BOX), ids, 2) * (self.side - size + 1))
        return [(int(top), int(left), size) for top, left in places]

    def share_in_view(self, value: tuple[int, ...]) -> float:
        """The share of an image that stays in view, exactly."""
        area = self.side**2
        if self.way == "shift":
            dy, dx = value
            return (self.side - abs(dy)) * (self.side - abs(dx)) / area
        return 1 - value[2] ** 2 / area

    def apply_one(self, image: Pixels, value: tuple[int, ...]) -> Pixels:
        """uint8 [S, S, C] with a part of it in view."""
        if self.way == "shift":
            dy, dx = value
            seen = np.empty_like(image)
            seen[:] = self.fill
            (to_y, from_y), (to_x, from_x) = (_spans(self.side, shift) for shift in (dy, dx))
            seen[to_y, to_x] = image[from_y, from_x]
            return seen
        top, left, size = value
        seen = image.copy()
        seen[top : top + size, left : left + size] = self.fill
        return seen


def _spans(side: int, shift: int) -> tuple[slice, slice]:
    """Where a shifted line of `side` pixels is in view, and which of its pixels are seen there."""
    return slice(max(shift, 0), side + min(shift, 0)), slice(max(-shift, 0), side - max(shift, 0))


def occlusions(points: int, side: int, mean: Sequence[float]) -> list[Occlusion]:
    """`points` shares from 1 down to 1 / points, by each way; `mean` colour in [0, 1], one number for grey."""
    fill = tuple(round(255 * value) for value in mean)
    fill = fill if len(fill) > 1 else fill * 3
    return [Occlusion(way, number / points, side, fill) for way in WAYS for number in range(points, 0, -1)]


class Seen:
    """Sums over images under an occlusion: share in view, and the network's confidence, its largest probability."""

    def __init__(self, occlusion: Occlusion, seed: int, device: torch.device) -> None:
        self.occlusion, self.seed = occlusion, seed
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # images, share in view, confidence

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:  # noqa: ARG002
        """Hears of a batch."""
        values = self.occlusion.values(self.seed, ids.numpy())
        seen = sum(map(self.occlusion.share_in_view, values))
        confidence = logits.double().softmax(1).amax(1).sum()
        self._sums += torch.stack([self._sums.new_tensor(len(ids)), self._sums.new_tensor(seen), confidence])

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the images of all processes; every process must call this."""
        images, seen, confidence = accelerator.reduce(self._sums, reduction="sum").tolist()
        return {"visibility": seen / images, "confidence": confidence / images}


def point(figures: dict[str, Any], means: dict[str, float]) -> dict[str, float]:
    """A point of a curve, from the figures of a split under an occlusion."""
    return {**means, **{name: figures[name] for name in ("top1", "nll", "ece")}}

"""The interface of loaders: from requests (epoch, ids) to batches of decoded images.

Sample identity, order and crops are the caller's. Every loader drops damaged images from its batches and counts them in
`skipped`; what is left of a batch keeps its order. None draws a random number that is not keyed by (seed, epoch, id).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.data import crop_windows as windows
from fastaug.data.crop_windows import Ints, Windows
from fastaug.data.image_files import Colour
from fastaug.data.loaders.cpu_resize import needed
from fastaug.data.sampler import Request
from fastaug.seeding import Key, Stream

Pixels = npt.NDArray[np.uint8]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`; to a GPU from pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Loader(Protocol):
    """A loader as the training and evaluation loops use it."""

    skipped: dict[int, str]  # id -> why it was left out, of the images met so far

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """One batch for every request, in order; shorter where images are damaged."""


class HostTransform(Protocol):
    """A host transform: what is done to a training image between crop and upload, as by a fixed augmentation policy.

    A loader calls it in its threads. What happens to an image is a function of (key, draw) alone.
    """

    def sample(self, key: Key, ids: npt.ArrayLike) -> list[Any]:
        """One value for each of the draws `ids` [N]: what will be done to that image."""

    def apply_one(self, image: Pixels, value: Any) -> Pixels:
        """uint8 [S, S, 3] under one of these values: a copy, or `image` itself where nothing is done."""


@dataclass(frozen=True)
class Crop:
    """The crop of a loader: which windows it cuts out of images, and how they become `side` x `side` pixels.

    `kind`: "rrc" (random resized crop), "center" or "whole". `scale` and `ratio` are those of random crops, `crop_pct`
    that of central ones (side / short side after resizing). `exif`: "ignore" or "apply", as the index was made.
    `background`: RGB behind transparent pixels, None: the colour that the file gives them. `channels`: 3, 1 (grey), or
    what the files of an index of as many have.
    """

    kind: str
    side: int
    seed: int = 0
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    exif: str = "ignore"
    background: Colour | None = None
    channels: int = 3

    def windows(self, request: Request, heights: Ints, widths: Ints) -> Windows:
        """The windows of a request's images, whose sizes are `heights` and `widths` [N]."""
        side = self.side
        if self.kind == "rrc":
            key, draws = Key(self.seed, request.epoch, Stream.WINDOW), request.draws()
            return windows.random_resized(key, draws, heights, widths, side, self.scale, self.ratio)
        if self.kind == "center":
            return needed(windows.center(heights, widths, side, self.crop_pct), side, self.interpolation)
        return windows.whole(heights, widths, side)


@dataclass(frozen=True)
class Loading:
    """The way a loader works: threads, prefetch, device (none of which changes a pixel) and host transform.

    `transform` is applied to every image on the host, with draws keyed by the seed of the crop, before the
    image is uploaded. None leaves images as they were cut, and lets a GPU decode them.
    """

    device: torch.device
    largest_batch: int = 256  # images of a request
    threads: int = 1
    prefetch: int = 2  # batches in preparation
    transform: HostTransform | None = None
    first_epoch: int = 0  # from which the transform acts
    spare: bool = False  # copy 0 of an image is left as it was cut: the transform is for the others

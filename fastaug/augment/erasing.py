"""Random erasing (Zhong et al. 2020) as timm does it, after normalisation; boxes drawn by (key, id)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtri
from torch import Tensor

from fastaug.ops.crop_mix.params import to_device
from fastaug.seeding import IdArray, Key, Stream, uniform, words

Mode = Literal["const", "rand", "pixel"]
AREA = (0.02, 1 / 3)  # share of the image, all boxes together; timm's
ASPECT = (0.3, 1 / 0.3)  # height / width; timm's
ATTEMPTS = 10  # boxes drawn until one fits; timm's


class Erasing(NamedTuple):
    """Box [N,count,4] (top, bottom, left, right; empty: none), value [N,count,C] (of grey 3) and noise seed [N]."""

    box: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    seed: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RandomErasing:
    """Erases, with probability `reprob`, 1 to `recount` boxes of an image of `img_size` = (height, width).

    `remode`: const fills with 0, which is the mean; rand with a normal value per box and channel; pixel with
    one per pixel. A box is redrawn up to ten times until it is smaller than the image, else left out.
    `channels`: of the images; up to 3 they draw the same.
    """

    reprob: float
    img_size: tuple[int, int]
    remode: Mode = "const"
    recount: int = 1
    channels: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.reprob <= 1:
            raise ValueError(f"reprob must be in [0, 1], found {self.reprob}")
        if self.remode not in get_args(Mode):
            raise ValueError(f"unknown remode {self.remode!r}; known: {', '.join(get_args(Mode))}")
        if self.recount < 1:
            raise ValueError(f"recount must be at least 1, found {self.recount}")

    def sample(self, key: Key, ids: IdArray) -> Erasing:
        """Boxes, values and noise seeds of each id."""
        colours = max(3, self.channels)
        per_box = 2 * ATTEMPTS + 2 + colours
        draws = 2 + self.recount * per_box
        key = key.on(Stream.ERASE)
        bits = words(key, ids, draws + 1)[:, draws]
        u = uniform(key, ids, draws)
        count = 1 + np.floor(u[:, 1] * self.recount)
        wanted = (u[:, :1] < self.reprob) & (np.arange(self.recount) < count[:, None])
        boxes = u[:, 2:].reshape(len(u), self.recount, per_box)
        height, width = self._sides(boxes, count)
        top = np.floor(boxes[..., -2 - colours] * (self.img_size[0] - height + 1))
        left = np.floor(boxes[..., -1 - colours] * (self.img_size[1] - width + 1))
        box = np.stack([top, top + height, left, left + width], -1) * wanted[..., None]
        value = ndtri(boxes[..., -colours:] + 2.0**-54) * (self.remode == "rand")
        return Erasing(box.astype(np.int64), value.astype(np.float32), bits >> np.uint64(1))

    def _sides(
        self, boxes: npt.NDArray[np.float64], count: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Height and width [N,count] of the first attempt that fits, 0 where none does."""
        share = AREA[0] + (AREA[1] - AREA[0]) * boxes[..., :ATTEMPTS]
        area = share * self.img_size[0] * self.img_size[1] / count[:, None, None]
        low, high = np.log(ASPECT)
        aspect = np.exp(low + (high - low) * boxes[..., ATTEMPTS : 2 * ATTEMPTS])
        height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = (height < self.img_size[0]) & (width < self.img_size[1])
        first = fits.argmax(-1)[..., None]
        height, width = (np.take_along_axis(np.where(fits, side, 0), first, -1)[..., 0] for side in (height, width))
        return height, width

    def apply(self, images: Tensor, params: Erasing) -> Tensor:
        """Erases in place in normalised float images [N,C,H,W] and returns them; noise differs between devices."""
        return erase(images, params, self.img_size, noise=self.remode == "pixel")


@dataclass(frozen=True)
class Cutout:
    """Blanks one square of side `length` (a share of the height) with the mean (DeVries and Taylor 2017, section 3.2).

    The square's centre is any pixel, so part of it may lie outside.
    """

    length: float
    img_size: tuple[int, int]

    def __post_init__(self) -> None:
        if not 0 < self.length <= 1:
            raise ValueError(f"cutout must be in (0, 1], found {self.length}")

    def sample(self, key: Key, ids: IdArray) -> Erasing:
        """One box per id."""
        u = uniform(key.on(Stream.CUTOUT), ids, 2)
        side = round(self.length * self.img_size[0])
        start = np.floor(u * self.img_size).astype(np.int64) - side // 2
        top, left = np.clip(start, 0, None).T
        bottom, right = np.clip(start + side, None, self.img_size).T
        box = np.stack([top, bottom, left, right], 1)[:, None]
        return Erasing(box, np.zeros((len(box), 1, 1), np.float32), np.zeros(len(box), np.uint64))

    def apply(self, images: Tensor, params: Erasing) -> Tensor:
        """Blanks in place in normalised float images [N,C,H,W] and returns them."""
        return erase(images, params, self.img_size, noise=False)


def erase(images: Tensor, params: Erasing, img_size: tuple[int, int], *, noise: bool) -> Tensor:
    """Erases in place in normalised float images [N,C,H,W] and returns them.

    Pixel noise is drawn by torch on the images' device: the same in every batch, but a GPU's differs from
    a CPU's.
    """
    if not images.is_floating_point() or tuple(images.shape[2:]) != img_size:
        found = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be floating [N,C,H,W] of size {img_size}, found {found}")
    if len(images) != len(params.box):
        raise ValueError(f"{len(images)} images with the parameters of {len(params.box)}")
    values = to_device(torch.from_numpy(params.value).to(images.dtype), images.device)
    generator, channels = torch.Generator(images.device), images.shape[1]
    for i in np.flatnonzero((params.box[..., 1] > params.box[..., 0]).any(1)):
        generator.manual_seed(int(params.seed[i]))
        for j, (top, bottom, left, right) in enumerate(params.box[i].tolist()):
            fill = values[i, j, :channels, None, None]
            if noise:
                fill = torch.randn(channels, bottom - top, right - left, generator=generator, device=images.device)
            images[i, :, top:bottom, left:right] = fill
    return images

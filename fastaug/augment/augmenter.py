"""Networks that turn noise into transformations of images, after bilevel_augment (Mounsaveng et al., WACV 2021).

A small network maps noise, and with `conditioned` the image too, to a few named numbers: degrees, shares of the side,
logarithms of factors. Each is reach * tanh(output), so that none leaves its bounds. An affine map is built from a
rotation, shear, scales and translations and not from a bounded matrix: these are all orientation-preserving affine maps
up to their reach, never a singular one; their units can be read and averaged, and a rotation is one number to learn
instead of four that have to agree.

The last layer is 0 at the start, and so is every number: images are exactly what they were. Its gradient is not 0. The
hidden units are ReLUs, whose means are above 0, and this matters: at a spread of 0 the gradient in an output and the
noise are independent, so with centred units the spread would stay there (outputs that are the same for all noise);
with these the first step that moves a mean moves the spread too.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastaug.augment.differentiable_ops import (
    BLACK,
    Colour,
    brightness,
    compose,
    contrast,
    hue_around_grey,
    rotation,
    saturation,
    scaling,
    shearing_x,
    translation_x,
    translation_y,
    warp,
)
from fastaug.seeding import IdArray, Key, Stream, scalar_seed, uniform

NOISE = 8  # numbers of noise for an image
HIDDEN = 32
SEEN = 64  # largest side of what an encoder looks at
SHOWN = 1024  # draws behind the figures of the log


class Number(NamedTuple):
    """A number of a transformation, in [-reach, reach]; `factor`: its logarithm is learned, or 1 is added to it."""

    reach: float
    unit: str  # of `plain`
    factor: str | None = None

    def plain(self, amount: Tensor) -> Tensor:
        """Amounts in the units of the log: degrees, shares of the side, tangents, factors."""
        return amount.exp() if self.factor == "log" else amount + 1 if self.factor == "add" else amount


NUMBERS: Mapping[str, Number] = MappingProxyType(
    {
        "rotate": Number(90.0, "degrees"),
        "shear_x": Number(0.5, "tangent"),
        "scale_x": Number(math.log(3), "factor", "log"),
        "scale_y": Number(math.log(3), "factor", "log"),
        "translate_x": Number(0.5, "share of the side"),
        "translate_y": Number(0.5, "share of the side"),
        "brightness": Number(0.9, "factor", "add"),
        "contrast": Number(0.9, "factor", "add"),
        "saturation": Number(0.9, "factor", "add"),
        "hue": Number(90.0, "degrees"),
    }
)
# What moves an image last comes first: it is scaled, sheared, turned, then moved.
GEOMETRY = ("translate_x", "translate_y", "rotate", "shear_x", "scale_x", "scale_y")
COLOURS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue_around_grey}
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "affine": GEOMETRY,
        "translation": ("translate_x", "translate_y"),
        "scale": ("scale_x", "scale_y"),
        "rotation": ("rotate",),
        "affine_color": (*GEOMETRY, *COLOURS),
    }
)


class Augmenter(nn.Module):
    """A network from noise to transformations of one of KINDS, with `conditioned` from noise and image.

    `seed` draws its initial weights, no generator is touched. `fill` is the colour of what a warp uncovers.
    """

    reach: Tensor  # [d]

    def __init__(self, kind: str, *, conditioned: bool = False, fill: Colour = BLACK, seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown kind of augmenter {kind!r}; known: {', '.join(KINDS)}")
        self.kind, self.conditioned, self.fill = kind, conditioned, tuple(fill)
        self.names = KINDS[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(scalar_seed(Key(seed, 0, Stream.AUGMENTER), 0))
            self.encoder = Encoder() if conditioned else None
            given = NOISE + (self.encoder.features if self.encoder is not None else 0)
            self.first, self.second = nn.Linear(given, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
            self.last = nn.Linear(HIDDEN, len(self.names))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.register_buffer("reach", torch.tensor([NUMBERS[name].reach for name in self.names]), persistent=False)

    @torch.no_grad()
    def begin_at(self, shares: Tensor) -> None:
        """Draws the numbers `shares` [d], in (-1, 1) of their reach, whatever the noise; of a network at its start."""
        self.last.bias.copy_(shares.atanh())

    def noise(self, key: Key, ids: IdArray) -> Tensor:
        """Noise [N,NOISE] uniform in [-1, 1), on the host: a function of (seed, epoch, id)."""
        u = uniform(key.on(Stream.AUGMENTER), ids, NOISE)
        return torch.from_numpy(2 * u - 1).to(self.last.weight.dtype)

    def amounts(self, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """The numbers [N,d] of each image, in the order of `names`, on the graph and device of the weights."""
        given = noise.to(self.last.weight.device, non_blocking=True)
        if self.encoder is not None:
            if images is None:
                raise ValueError("a conditioned augmenter needs the images")
            given = torch.cat([given, self.encoder(images.to(given))], 1)
        hidden = _linear(self.second, _linear(self.first, given).relu()).relu()
        return self.reach * _linear(self.last, hidden).tanh()

    def apply(self, images: Tensor, amounts: Tensor) -> Tensor:  # type: ignore[override]  # as every policy's
        """Float images [N,3,S,S] in [0, 1] transformed by amounts [N,d]: one warp, then the colours."""
        by_name = dict(zip(self.names, amounts.unbind(1), strict=True))
        if (whole := matrix(by_name)) is not None:
            images = warp(images, whole, self.fill)
        for name, change in COLOURS.items():
            if name in by_name:
                images = change(images, by_name[name].to(images, non_blocking=True))
        return images

    @torch.no_grad()
    def drawn(self) -> Tensor:
        """Amounts [SHOWN,d] of fixed noise, for the log; of an augmenter that is not conditioned."""
        return self.amounts(self.noise(Key(0, 0, Stream.AUGMENTER), range(SHOWN)))


class Encoder(nn.Module):
    """What a conditioned augmenter sees of an image of any size: 16 features at each of 4 x 4 places."""

    features = 16 * 4 * 4

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Features [N,features] of images [N,3,S,S] in [0, 1]."""
        if max(images.shape[2:]) > SEEN:
            images = F.adaptive_avg_pool2d(images, SEEN)
        seen = self.second(self.first(2 * images - 1).relu()).relu()
        return F.adaptive_avg_pool2d(seen, 4).flatten(1)


def matrix(amounts: Mapping[str, Tensor]) -> Tensor | None:
    """The matrix [N,3,3], as `warp` wants it, of the geometric ones of the amounts [N]; None if there are none."""
    parts = []
    if "translate_x" in amounts:
        parts += [translation_x(amounts["translate_x"]), translation_y(amounts["translate_y"])]
    if "rotate" in amounts:
        parts.append(rotation(amounts["rotate"]))
    if "shear_x" in amounts:
        parts.append(shearing_x(amounts["shear_x"]))
    if "scale_x" in amounts:
        parts.append(scaling(amounts["scale_x"].exp(), amounts["scale_y"].exp()))
    whole = None
    for part in reversed(parts):
        whole = part if whole is None else compose(whole, part)
    return whole


def _linear(layer: nn.Linear, given: Tensor) -> Tensor:
    """The layer by sums, which are the same for a sample in any batch; a matrix product's depend on its size."""
    return (given[:, None, :] * layer.weight).sum(2) + layer.bias

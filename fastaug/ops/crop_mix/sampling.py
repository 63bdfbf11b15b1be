"""Draws shifts, flips, boxes and shares for the op, on the host; every number depends on (key, sample id) alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import betaincinv, ndtr, ndtri

from fastaug.ops.crop_mix.params import CropMixParams
from fastaug.seeding import IdArray, Key, Stream, checked_ids, uniform, words

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FILLS = ("mean", "random", "constant", "noise")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """The distributions of shifts, flips, boxes and blends. Mixing keys are timm's.

    sigma: standard deviation of a shift as a share of the image's size; 0 is off. limit: largest shift, a share of that
    size; an image never leaves the frame entirely. shift: "normal", or "uniform" over the whole pixels up to sigma *
    size (the usual crop after padding). fill: "mean", "constant" (`fill_value`, in [0, 1]) or "random", one colour per
    sample as in the release of Soft Augmentation (mean + 0.01 std times a normal number per channel), or "noise", a
    normal number of mean and std per pixel and channel (slower: `crop_mix` passes over the batch again). hflip:
    probability. mixup, cutmix: alpha of Beta(alpha, alpha), 0 is off. mixup_prob: share mixed at all;
    mixup_switch_prob: share of those that are CutMix where both are on. mixup_mode: one draw for a "batch" (block of
    `mix_group`) or each sample ("elem"). lam_fold: lambda := max(lambda, 1 - lambda), the base keeps the larger part.
    mix_group: partners are drawn inside consecutive blocks of so many positions; None is the whole batch.
    """

    sigma: float = 0.0
    limit: float = 1.0
    shift: str = "normal"
    fill: str = "mean"
    fill_value: float = 0.0
    hflip: float = 0.5
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    lam_fold: bool = False
    mix_group: int | None = None

    def __post_init__(self) -> None:
        for name in ("sigma", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0 (0 turns it off), found {getattr(self, name)}")
        for name in ("limit", "hflip", "mixup_prob", "mixup_switch_prob", "fill_value"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], found {getattr(self, name)}")
        if self.shift not in ("normal", "uniform"):
            raise ValueError(f"shift must be normal or uniform, found {self.shift!r}")
        if self.fill not in FILLS:
            raise ValueError(f"fill must be one of {', '.join(FILLS)}, found {self.fill!r}")
        if self.mixup_mode not in ("batch", "elem"):
            raise ValueError(f"mixup_mode must be batch or elem, found {self.mixup_mode!r}")
        if self.mix_group is not None and self.mix_group < 1:
            raise ValueError(f"mix_group must be >= 1 or None (the whole batch), found {self.mix_group}")


@torch.compiler.disable  # draws in NumPy, on the host
def sample_crop_mix(
    key: Key,
    ids: IdArray,
    size: tuple[int, int],
    sampling: Sampling = Sampling(),
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    white: float = 255.0,
    strength: float = 1.0,
) -> CropMixParams:
    """Parameters of N samples `ids` [N] (in batch order) for images of `size` (height, width) pixels, in host memory.

    `key` names the draws, `sampling` their distributions; `mean` and `std` [C] in [0, 1] are those of the fills.
    `white` is the image value of white: 255 for uint8, 1 for floats; fills are in its units. `strength` in [0, 1]
    scales sigma, so that the last epochs can anneal it. ValueError for a strength outside of that, and for ids or a key
    that are none. Inside of torch.compile it runs as it is, between two graphs.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], found {strength}")
    ids = checked_ids(ids)
    partner, leader = _partners(key, ids, sampling.mix_group)
    box, blend = _mixing(key, ids if sampling.mixup_mode == "elem" else leader, size, sampling)
    shift = uniform(key.on(Stream.SHIFT), ids, 2)
    draw = truncated_shift if sampling.shift == "normal" else uniform_shift
    dy, dx = (draw(shift[:, a], size[a], sampling.sigma * strength, sampling.limit) for a in (0, 1))
    flip = uniform(key.on(Stream.FLIP), ids, 1)[:, 0] < sampling.hflip
    fill = _fill(key, ids, sampling, np.asarray(mean), np.asarray(std)) * white
    noise = None
    if sampling.fill == "noise":  # seeds of 63 bits
        noise = torch.from_numpy((words(key.on(Stream.FILL), ids, 1)[:, 0] >> np.uint64(1)).astype(np.int64))
    arrays = (dy, dx, flip, partner, box, fill.astype(np.float32), blend.astype(np.float32))
    drawn = dict(
        zip(("dy", "dx", "flip", "partner", "box", "fill", "blend"), map(torch.from_numpy, arrays), strict=True)
    )
    return CropMixParams(**drawn, noise=noise, white=float(white))


def truncated_shift(u: Floats, size: int, sigma: float, limit: float) -> Ints:
    """Uniform u [N] in [0, 1) -> int(t), t normal of deviation sigma * size, given |t| <= limit * size.

    The conditional inverse CDF gives with one draw the distribution that redrawing until |t| fits has (Soft
    Augmentation's release). int() cuts towards zero, so that of size pixels at least one stays in sight.
    """
    if sigma * size == 0:
        return np.zeros(len(u), dtype=np.int64)
    low = ndtr(-limit / sigma)
    shift = np.trunc(sigma * size * ndtri(low + u * (1 - 2 * low)))
    most = max(math.ceil(limit * size) - 1, 0)
    return np.clip(shift, -most, most).astype(np.int64)  # u = 0 and rounding may land on the limit itself


def uniform_shift(u: Floats, size: int, sigma: float, limit: float) -> Ints:
    """Uniform u [N] in [0, 1) -> a whole number of pixels, uniform up to int(min(sigma, limit) * size) either way.

    Up to size - 1 at most, so that something stays in sight.
    """
    most = min(int(min(sigma, limit) * size), size - 1)
    return np.floor(u * (2 * most + 1)).astype(np.int64) - most


def beta_lambda(u: Floats, alpha: float) -> Floats:
    """Uniform u [N] -> Beta(alpha, alpha) by its inverse CDF: [N]. Mixup, section 2; CutMix, section 3.1."""
    return np.asarray(betaincinv(alpha, alpha, u))


def cutmix_box(lam: Floats, centre: Floats, size: tuple[int, int]) -> Ints:
    """Boxes of side sqrt(1 - lam), centre [N,2] uniform in [0, 1), clipped: [N,4]. CutMix, equation 2."""
    sides = []
    for axis in (0, 1):
        side = (size[axis] * np.sqrt(1 - lam)).astype(np.int64)
        start = np.floor(centre[:, axis] * size[axis]).astype(np.int64) - side // 2
        sides += [np.clip(start, 0, size[axis]), np.clip(start + side, 0, size[axis])]
    return np.stack(sides, 1)


def _mixing(key: Key, ids: Ints, size: tuple[int, int], sampling: Sampling) -> tuple[Ints, Floats]:
    """Boxes [N,4] and shares of the own view [N]: at most one of the two mixes a sample."""
    box, blend = np.zeros((len(ids), 4), dtype=np.int64), np.ones(len(ids))
    if not (sampling.mixup or sampling.cutmix):
        return box, blend
    mixes, switch, u = uniform(key.on(Stream.MIX), ids, 3).T
    mixed = mixes < sampling.mixup_prob
    both = sampling.mixup > 0 and sampling.cutmix > 0
    pastes = mixed & (switch < (sampling.mixup_switch_prob if both else sampling.cutmix > 0))
    blends = mixed & ~pastes
    if sampling.cutmix:
        lam = _folded(beta_lambda(u[pastes], sampling.cutmix), sampling.lam_fold)
        box[pastes] = cutmix_box(lam, uniform(key.on(Stream.BOX), ids[pastes], 2), size)
    if sampling.mixup:
        blend[blends] = _folded(beta_lambda(u[blends], sampling.mixup), sampling.lam_fold)
    return box, blend


def _folded(lam: Floats, fold: bool) -> Floats:
    """max(lam, 1 - lam) if `fold`, else lam."""
    return np.maximum(lam, 1 - lam) if fold else lam


def _partners(key: Key, ids: Ints, group: int | None) -> tuple[Ints, Ints]:
    """Partner's position [N] and the id that leads each one's block [N].

    A block is put in the order of one random word per id, and each takes the next in that circle as partner:
    a permutation that depends on the ids of the block alone. Only a block of one pairs a sample with itself.
    """
    n = len(ids)
    group = group or max(n, 1)
    first = np.arange(n) // group * group
    circle = np.lexsort((words(key.on(Stream.PARTNER), ids, 1)[:, 0], first))
    following = np.arange(1, n + 1)
    ends = (following % group == 0) | (following == n)
    following[ends] = first[ends]
    partner = np.empty(n, dtype=np.int64)
    partner[circle] = circle[following]
    return partner, ids[circle[first]]


def _fill(key: Key, ids: Ints, sampling: Sampling, mean: Floats, std: Floats) -> Floats:
    """Value outside of the image in [0, 1] units: [N,C]."""
    if sampling.fill == "constant":
        return np.full((len(ids), len(mean)), sampling.fill_value)
    colour = np.broadcast_to(mean, (len(ids), len(mean)))
    if sampling.fill != "random":
        return colour
    u = uniform(key.on(Stream.FILL), ids, len(mean))
    return colour + 0.01 * std * ndtri(np.maximum(u, 2.0**-54))

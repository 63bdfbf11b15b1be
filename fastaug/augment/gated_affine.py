"""Seven affine operations, each behind a gate of its own and by a random amount: the augmentation of AutoDO.

Gudovskiy et al., "AutoDO: Robust AutoAugment for Biased Data with Label Noise via Scalable Probabilistic Implicit
Differentiation", CVPR 2021. An image has 14 numbers: logits of the probability p and of the magnitude m of each
operation, in the order of OPERATIONS. Operation k acts where its gate opens, with probability p_k, by the amount
reach_k * m_k * z with z a standard normal number. All of an image are one warp, which repeats the border's pixels.

Magnitudes are learned through the pixels, exactly. A gate is straight-through: 1 where it is open, with the slope of
its relaxed form, the logistic function of the perturbed logit (the binary concrete distribution of Maddison et al. 2017
at temperature 1). A closed gate passes nothing on: z is symmetric and what a closed gate leaves is the image without
it, so that the mean of its straight-through gradient is exactly 0, and all of it noise.

Apart from AutoDO: places are in halves of the sides, so that rotations are about the centre of images of any shape; a
scale is a factor 1.5^(m z), never 0 or negative; z is cut off at LARGEST, and logits at BOUND.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from fastaug.augment.differentiable_ops import (
    apply_drawn,
    moving,
    rotation,
    shearing_x,
    shearing_y,
    translation_x,
    translation_y,
    zoom_x,
    zoom_y,
)
from fastaug.seeding import IdArray, Key, Stream, uniform

# In the order in which they act.
OPERATIONS = (
    moving("scale_x", [math.log(1.5)], zoom_x),
    moving("scale_y", [math.log(1.5)], zoom_y),
    moving("rotate", [30.0], rotation, pixels=True),
    moving("translate_x", [0.45], translation_x),
    moving("translate_y", [0.45], translation_y),
    moving("shear_x", [0.30], shearing_x, pixels=True),
    moving("shear_y", [0.30], shearing_y, pixels=True),
)
UNITS = ("log factor", "log factor", "degrees", "share of the side", "share of the side", "tangent", "tangent")
COUNT = len(OPERATIONS)
NUMBERS = 2 * COUNT  # of an image
PROBABILITY, MAGNITUDE = 1 / 5, 1 / 2  # at the start
LARGEST = 3.0  # standard deviations of an amount
BOUND = 6.0  # of a logit: probabilities and magnitudes from .0025 to .9975, where a slope is left


class Noise(NamedTuple):
    """Random numbers of N images, on the host: logistic ones [N,7] of the gates, normal ones [N,7] of the amounts."""

    gate: Tensor
    amount: Tensor


class Drawn(NamedTuple):
    """What is done to N images: amounts [N,7] on the graph of their numbers, and which gates are open [N,7], bool."""

    amounts: Tensor
    opened: Tensor


def start() -> Tensor:
    """The numbers of an image before anything is learned: [14]."""
    logits = [math.log(share / (1 - share)) for share in (PROBABILITY, MAGNITUDE)]
    return torch.tensor(logits).repeat_interleave(COUNT)


def noise(key: Key, ids: IdArray, dtype: torch.dtype = torch.float32) -> Noise:
    """The noise of each id: a function of (seed, epoch, id)."""
    u = np.maximum(uniform(key.on(Stream.GATED_AFFINE), ids, NUMBERS), 2.0**-54)  # at most 1 - 2**-53: all is finite
    gate, amount = np.log1p(-u[:, :COUNT]) - np.log(u[:, :COUNT]), ndtri(u[:, COUNT:]).clip(-LARGEST, LARGEST)
    return Noise(torch.from_numpy(gate).to(dtype), torch.from_numpy(amount).to(dtype))


def probabilities(numbers: Tensor) -> Tensor:
    """The probability of each operation, of numbers [..., 14]: [..., 7]."""
    return _within(numbers)[..., :COUNT].sigmoid()


def magnitudes(numbers: Tensor) -> Tensor:
    """The magnitude of each operation, of numbers [..., 14]: [..., 7]."""
    return _within(numbers)[..., COUNT:].sigmoid()


def drawn(numbers: Tensor, noise: Noise) -> Drawn:
    """What N images draw under numbers [N,14] on the host, each its own or [1,14] for all."""
    perturbed = _within(numbers)[:, :COUNT] + noise.gate
    opened, relaxed = perturbed.detach() > 0, perturbed.sigmoid()
    gates = opened * (1 + (relaxed - relaxed.detach()))
    reach = numbers.new_tensor([operation.reach[0] for operation in OPERATIONS])
    return Drawn(gates * magnitudes(numbers) * noise.amount * reach, opened)


def apply(images: Tensor, drawn: Drawn) -> Tensor:
    """Float images [N,3,H,W] in [0, 1] as drawn; those without an open gate exactly as they are."""
    op = drawn.opened * torch.arange(1, 1 + COUNT)
    return apply_drawn(images, op, drawn.amounts[..., None], OPERATIONS, "border")


def _within(numbers: Tensor) -> Tensor:
    """The numbers cut off at BOUND; the slope stays 1, so that what went beyond comes back."""
    return numbers + (numbers.clamp(-BOUND, BOUND) - numbers).detach()

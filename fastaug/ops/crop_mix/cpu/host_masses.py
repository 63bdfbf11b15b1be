"""The masses of a batch in host memory in one compiled pass over its samples, in place of 70 small torch operations.

The definition is `masses.py`; results are equal to the bit: every product and sum is rounded to float32 on its own,
and the power is torch's.
"""

import numpy as np
import torch
from torch import Tensor

from fastaug.ops.crop_mix.cpu.compiler import entry, inlined
from fastaug.ops.crop_mix.params import CropMixParams
from fastaug.ops.crop_mix.soften import Soften

ONE = np.float32(1)


def masses_on_host(params: CropMixParams, size: tuple[int, int], classes: int, soften: Soften) -> tuple[Tensor, Tensor]:
    """Masses [N,2] and loss weights [N], float32, of N samples. blend is float32 or None, k, p_max and T in range."""
    n = len(params)
    blend = np.ones(n, dtype=np.float32) if params.blend is None else params.blend.numpy()
    shown = params.dy.numpy(), params.dx.numpy(), params.partner.numpy(), params.box.numpy(), blend, size
    power, mass, weight = np.zeros((n, 2), np.float32), np.empty((n, 2), np.float32), np.ones(n, np.float32)
    joins, base = soften.rule == "pixels", soften.rule == "base"
    if soften.on != "none":
        _hide(shown, joins, soften.visibility == "iou", np.float32(soften.threshold), power)
        power = (torch.from_numpy(power) ** soften.k).numpy()
    chance = 1 / classes
    reach, count = np.float32((soften.p_max - chance) / (1 - chance)), np.float32(classes)
    on = soften.on in ("both", "target"), soften.on in ("both", "weight")
    _join(shown, power, reach, count, joins, base, on, mass, weight)
    return torch.from_numpy(mass), torch.from_numpy(weight)


@inlined
def _rectangle(dy, dx, height, width):  # type: ignore[no-untyped-def]
    """Where a view shows its image: top, bottom, left, right."""
    return max(0, -dy), min(height, height - dy), max(0, -dx), min(width, width - dx)


@inlined
def _common(a, b):  # type: ignore[no-untyped-def]
    """Pixels that two rectangles share."""
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[2], b[2]), 0)


@inlined
def _counts(shown, i):  # type: ignore[no-untyped-def]
    """Visible pixels of sample i: base outside its box, partner in it; both whole views; pixels of the box."""
    dy, dx, partner, boxes, _, size = shown
    j, box = partner[i], (boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3])
    own, other = _rectangle(dy[i], dx[i], size[0], size[1]), _rectangle(dy[j], dx[j], size[0], size[1])
    whole = _common(own, own), _common(other, other)
    return (whole[0] - _common(own, box), _common(other, box)), whole, _common(box, box)


@entry
def _hide(shown, joins, iou, threshold, out):  # type: ignore[no-untyped-def]
    """(T - v)/T, 0 from v = T on, of both images of every sample: [N,2]; with `joins` of both at once in a box."""
    pixels = np.float32(shown[5][0] * shown[5][1])
    for i in range(len(out)):
        parts, whole, pasted = _counts(shown, i)
        for c in range(2):
            v = np.float32(parts[0] + parts[1] if joins and pasted > 0 else whole[c]) / pixels
            v = v / (np.float32(2) - v) if iou else v
            out[i, c] = max(ONE - v / threshold, np.float32(0))


@entry
def _join(shown, power, reach, classes, joins, base, on, mass, weight):  # type: ignore[no-untyped-def]
    """Masses [N,2] and weights [N] from the power of what is hidden; without softness both stay hard."""
    blend, size = shown[4:]
    for i in range(len(mass)):
        parts, _, pasted = _counts(shown, i)
        lam = ONE - np.float32(pasted) / np.float32(size[0] * size[1]) if pasted > 0 else blend[i]
        hard = lam, ONE - lam
        first = reach * (ONE - power[i, 0])
        curve = first, first if base else reach * (ONE - power[i, 1])
        soft = hard[0] * curve[0], hard[1] * curve[1]
        if joins and pasted > 0:
            seen = np.float32(max(parts[0] + parts[1], 1))
            soft = curve[0] * np.float32(parts[0]) / seen, curve[1] * np.float32(parts[1]) / seen
        mass[i, 0], mass[i, 1] = soft if on[0] else hard
        if on[1]:
            first, second = curve[0] + (ONE - curve[0]) / classes, curve[1] + (ONE - curve[1]) / classes
            total = soft[0] + soft[1]
            weight[i] = (soft[0] * first + soft[1] * second) / total if total > 0 else first

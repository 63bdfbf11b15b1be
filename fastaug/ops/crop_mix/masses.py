"""Soft targets of cropped and mixed samples, from the visible area of both images: closed form, no pixel is read.

Mass: the probability that a target puts on a class by name; what is left is uniform over all classes.
"""

import torch
from torch import Tensor

from fastaug.ops.crop_mix import cpu
from fastaug.ops.crop_mix.params import CropMixParams, on_host, to_device
from fastaug.ops.crop_mix.soften import Soften
from fastaug.targets import (
    SoftTarget,
    mass_confidence,
    mixed_weight,
    other_class_target,
)


def visible_counts(params: CropMixParams, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Visible pixels of the base outside of its box and of the partner in it [N,2]; of both whole views [N,2].

    Rows and columns at once, own view and partner's at once: on the CPU these small operations cost what their
    number is, not what they compute. All [2 axes, 2 views, N].
    """
    shift = torch.stack([params.dy, params.dx])
    shift = torch.stack([shift, shift[:, params.partner]], 1)
    hidden = shift.clamp_min(0)  # of the end; of the start it is `first`
    first, stop = hidden - shift, params.box.new_tensor(size)[:, None, None] - hidden
    start, end = params.box.T.unflatten(0, (2, 2)).split(1, 1)
    view = (stop - first).clamp_min(0).prod(0)
    boxed = (torch.minimum(end, stop) - torch.maximum(start, first)).clamp_min(0).prod(0)
    return torch.stack([view[0] - boxed[0], boxed[1]], 1), view.T.contiguous()


def _plain(params: CropMixParams, classes: int, soften: Soften) -> bool:
    """Whether `cpu.masses` gives the same: no gradient, no device, no error to raise."""
    single = params.blend is None or params.blend.dtype == torch.float32
    numbers = not isinstance(soften.k, Tensor) and soften.threshold > 0 and 1 / classes <= soften.p_max <= 1
    return single and numbers and on_host(params)


def masses(params: CropMixParams, size: tuple[int, int], classes: int, soften: Soften) -> tuple[Tensor, Tensor]:
    """Masses [N,2] and loss weights [N] of N samples, on the device of `params` (of k, if k is a tensor)."""
    if _plain(params, classes, soften) and cpu.has_numba():
        return cpu.masses(params, size, classes, soften)
    pixels = size[0] * size[1]
    parts, whole = visible_counts(params, size)
    pasted, blend = params.pasted(), params.blend
    if isinstance(soften.k, Tensor):
        parts, whole, pasted = (to_device(t, soften.k.device) for t in (parts, whole, pasted))
        blend = blend if blend is None else to_device(blend, soften.k.device)
    boxed = pasted > 0
    lam = 1 - pasted / pixels
    lam = lam if blend is None else torch.where(boxed, lam, blend)
    hard = torch.stack([lam, 1 - lam], 1)
    if soften.on == "none":
        return hard, torch.ones_like(lam)
    joint = boxed[:, None] if soften.rule == "pixels" else None  # samples whose two images are softened as one
    seen = whole if joint is None else torch.where(joint, parts.sum(1, keepdim=True), whole)
    curve = soften.curve(seen / pixels, classes)
    curve = curve[:, :1].expand_as(curve) if soften.rule == "base" else curve
    soft = hard * curve
    if joint is not None:
        soft = torch.where(joint, curve * parts / seen.clamp_min(1), soft)
    weight = torch.ones_like(lam) if soften.on == "target" else mixed_weight(soft, mass_confidence(curve, classes))
    return hard if soften.on == "weight" else soft, weight


def soft_targets(
    labels: Tensor, params: CropMixParams, size: tuple[int, int], classes: int, soften: Soften
) -> SoftTarget:
    """Targets of the mixed batch for `labels` [N] int64, on their device.

    `params` say what was done to images of `size` (height, width) pixels; `classes` C, `soften` how visibility turns
    into mass. ValueError: "other" with mixing.
    """
    mass, weight = (to_device(t, labels.device) for t in masses(params, size, classes, soften))
    if soften.other:
        _refuse_mixing(params)
        p = mass_confidence(mass[:, 0], classes)
        return other_class_target(labels, p, classes)._replace(weight=weight)
    partner = to_device(params.partner, labels.device)
    return SoftTarget(torch.stack([labels, labels[partner]], 1), mass, weight)


def _refuse_mixing(params: CropMixParams) -> None:
    """ValueError if any sample is mixed; parameters on a device are not read."""
    if params.box.device.type == "cpu" and ((params.pasted() > 0) | (params.own_share() < 1)).any():
        raise ValueError("the 'other' class cannot say how two labels mix; turn mixup and cutmix off, or `other`")

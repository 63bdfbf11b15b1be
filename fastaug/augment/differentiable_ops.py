"""Operations on float images that are differentiable in how strongly they act, and the way to apply many at once.

Here are the geometric ones, the colours of augmenters, and the default set of eight: the continuous operations of
AutoAugment and RandAugment (Cubuk et al. 2019, 2020), whose ranges these are, but for shear_y, which to first order is
a rotation with a shear_x. `colour_ops.py` and `local_ops.py` have the others, `operation_sets.py` makes sets of them
all. An amount of 0 leaves an image exactly as it is, and amounts of both signs mean something, so a magnitude can be
learned from 0 up. Images are float32 or float64 [n,3,H,W] in [0, 1], in any memory format; amounts are a number [n] or
d numbers [n,d] for each image. Gradients are finite everywhere; second ones are not there.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor

from fastaug.recipe.operation_files import Operation

Colour = Sequence[float]  # red, green, blue in [0, 1]
Fill = Colour | Literal["border", "reflect"]  # what is shown outside of an image: a colour, its border, its mirror
BLACK: Colour = (0.0, 0.0, 0.0)
_PADDING = {"border": "border", "reflect": "reflection"}  # grid_sample's words


class Transform(NamedTuple):
    """A differentiable operation apply(images [n,3,H,W], amount [n,d]) -> images; `reach`: the largest amounts, [d].

    What it is drawn with is amount = reach * magnitude * u, with u uniform in `noise` = (low, high): (-1, 1) acts both
    ways, (0, 1) one way, (1, 1) always by its whole magnitude (a known shift). One that only moves pixels also has
    matrix(amount [...,d]) -> [...,3,3] as `warp` wants it: a sample's operations of that kind then share one
    resampling. An operation that knows one direction only takes the absolute amount.

    `pixels`: the matrix is in pixels from the centre (a rotation, on images that are not square; a shift by pixels).
    `projective`: its last row is not 0 0 1. `free`: that many of its numbers, the last, are a place: from -reach to
    reach, whatever the magnitude and `noise`. `fixed`: its magnitude is 1 and is not learned (a mirror, or whatever is
    to act in full). `entry`: what a file of operations says to make it, where it comes from one.
    """

    name: str
    reach: tuple[float, ...]
    apply: Callable[[Tensor, Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor] | None = None
    noise: tuple[float, float] = (-1.0, 1.0)
    pixels: bool = False
    projective: bool = False
    free: int = 0
    fixed: bool = False
    entry: Operation | None = None


def moving(
    name: str,
    reach: Sequence[float],
    matrix: Callable[..., Tensor],
    *,
    pixels: bool = False,
    projective: bool = False,
    fill: Fill = BLACK,
) -> Transform:
    """A geometric operation (only moves pixels), by matrix(first amount [...], second [...], ...) -> [...,3,3].

    `fill` is for its own `apply`; many at once take that of `apply_drawn`.
    """
    apply = partial(_warped, matrix, pixels, projective, fill)
    own = partial(_of_amounts, matrix)
    return Transform(name, tuple(reach), apply, own, pixels=pixels, projective=projective)


def colouring(name: str, reach: float, change: Callable[[Tensor, Tensor], Tensor]) -> Transform:
    """A colour operation change(images, amount [n]), which leaves pixels where they are."""
    return Transform(name, (reach,), partial(_coloured, change))


def _of_amounts(matrix: Callable[..., Tensor], amount: Tensor) -> Tensor:
    return matrix(*amount.unbind(-1))


def _warped(
    matrix: Callable[..., Tensor], pixels: bool, projective: bool, fill: Fill, images: Tensor, amount: Tensor
) -> Tensor:
    own = _of_amounts(matrix, amount)
    height, width = images.shape[2:]
    return warp(images, of_sides(own, height, width) if pixels else own, fill, projective=projective)


def _coloured(change: Callable[[Tensor, Tensor], Tensor], images: Tensor, amount: Tensor) -> Tensor:
    return change(images, amount[:, 0])


# ---- moving pixels ----


def warp(images: Tensor, matrix: Tensor, fill: Fill = BLACK, *, projective: bool = False) -> Tensor:
    """Bilinear warp: output pixel p is the image at matrix [n,3,3] times (p, 1), and `fill` outside the image.

    p = (x to the right, y down), from -1 to 1 between the outer edges of the image; of the product (x, y, w) the place
    is (x, y) / w if `projective`, else w is taken to be 1. Where the matrix is the identity the output is exactly the
    image. No gradient in the images is computed unless they ask for one.
    """
    matrix = matrix.to(images.device, images.dtype, non_blocking=True)
    still = (matrix == _identity(matrix)).flatten(1).all(1)
    height, width = images.shape[2:]
    columns = (matrix[:, :, :1] * centres(width, images) + matrix[:, :, 2:])[:, :, None]
    lines = (matrix[:, :, 1:2] * centres(height, images))[..., None]
    if not projective:
        columns, lines = columns[:, :2], lines[:, :2]
    places = columns + lines  # x and y each in one plane: 10 times faster than F.affine_grid
    if projective:
        places = places[:, :2] / places[:, 2:]
    return resample(images, places, still, fill)


def centres(count: int, like: Tensor) -> Tensor:
    """The centres of `count` pixels side by side, from -1 to 1 between the outer edges: [count]."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1) / count - 1


def resample(images: Tensor, places: Tensor, still: Tensor, fill: Fill) -> Tensor:
    """Images read at `places` [n,2,H,W] (x and y, as in `warp`), bilinear; exactly as they are where `still` [n]."""
    grid = places.permute(0, 2, 3, 1)
    if isinstance(fill, str):
        warped = F.grid_sample(images, grid, padding_mode=_PADDING[fill], align_corners=False)
    elif any(fill):
        colour = torch.tensor(fill, dtype=images.dtype).to(images.device, non_blocking=True)[:, None, None]
        warped = F.grid_sample(images - colour, grid, align_corners=False) + colour
    else:
        warped = F.grid_sample(images, grid, align_corners=False)
    with torch.no_grad():  # a correction of rounding only: the derivative stays that of the resampling
        torch.where(still[:, None, None, None], images, warped, out=warped.detach())
    return warped


def of_sides(matrix: Tensor, height: int, width: int) -> Tensor:
    """A matrix [...,3,3] in pixels from the centre as `warp` wants it: in halves of the sides. Exact on squares."""
    x, y = width / 2, height / 2
    factors = [[1.0, y / x, 1 / x], [x / y, 1.0, 1 / y], [x, y, 1.0]]
    return matrix * torch.tensor(factors, dtype=matrix.dtype).to(matrix.device, non_blocking=True)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The matrix [...,3,3] of warping by `first` and then by `then`."""
    return (first[..., :, :, None] * then[..., None, :, :]).sum(-2)  # not matmul, which may round to TF32


def rotation(degrees: Tensor) -> Tensor:
    """The matrix [...,3,3] of a counter-clockwise rotation by `degrees` [...] around the centre."""
    angle = degrees * (math.pi / 180)
    sin, cos = angle.sin(), angle.cos()
    return _affine(degrees, xx=cos, xy=-sin, yx=sin, yy=cos)


def translation_x(share: Tensor) -> Tensor:
    """The matrix [...,3,3] of a translation to the right by a share [...] of the side."""
    return _affine(share, x=-2 * share)


def translation_y(share: Tensor) -> Tensor:
    """The matrix [...,3,3] of a translation down by a share [...] of the side."""
    return _affine(share, y=-2 * share)


def scaling(width: Tensor, height: Tensor) -> Tensor:
    """The matrix [...,3,3] that makes what is shown wider and higher by factors [...] around the centre."""
    return _affine(width, xx=1 / width, yy=1 / height)


def shearing_x(tangent: Tensor) -> Tensor:
    """The matrix [...,3,3] of a horizontal shear: what lies h below the centre moves h * tangent to the right."""
    return _affine(tangent, xy=-tangent)


def shearing_y(tangent: Tensor) -> Tensor:
    """The matrix [...,3,3] of a vertical shear: what lies w right of the centre moves w * tangent down."""
    return _affine(tangent, yx=-tangent)


def translation_x_pixels(pixels: Tensor) -> Tensor:
    """The matrix [...,3,3], in pixels, of a translation to the right."""
    return _affine(pixels, x=-pixels)


def translation_y_pixels(pixels: Tensor) -> Tensor:
    """The matrix [...,3,3], in pixels, of a translation down."""
    return _affine(pixels, y=-pixels)


def zoom(logarithm: Tensor) -> Tensor:
    """The matrix [...,3,3] of a zoom about the centre by a factor of e^logarithm: above 0 things get larger."""
    inverse = (-logarithm).exp()
    return _affine(logarithm, xx=inverse, yy=inverse)


def zoom_x(logarithm: Tensor) -> Tensor:
    """The matrix [...,3,3] of a horizontal stretch by a factor of e^logarithm."""
    return _affine(logarithm, xx=(-logarithm).exp())


def zoom_y(logarithm: Tensor) -> Tensor:
    """The matrix [...,3,3] of a vertical stretch by a factor of e^logarithm."""
    return _affine(logarithm, yy=(-logarithm).exp())


def tilt(x: Tensor, y: Tensor) -> Tensor:
    """The matrix [...,3,3] of a perspective: what is right of (below) the centre is read nearer to it, x (y) above 0.

    Projective: (x, y, 1) is read at (x, y) / (1 + x tilt_x + y tilt_y).
    """
    return torch.cat([_affine(x)[..., :2, :], torch.stack([x, y, torch.ones_like(x)], -1)[..., None, :]], -2)


def mirror_x(amount: Tensor) -> Tensor:
    """The matrix [...,3,3] that exchanges left and right wherever the amount is not 0; no gradient."""
    return _affine(amount, xx=torch.where(amount == 0, 1.0, -1.0).to(amount))


def mirror_y(amount: Tensor) -> Tensor:
    """The matrix [...,3,3] that exchanges top and bottom wherever the amount is not 0; no gradient."""
    return _affine(amount, yy=torch.where(amount == 0, 1.0, -1.0).to(amount))


def _affine(amount: Tensor, **entries: Tensor) -> Tensor:
    """Identities [...,3,3] for amounts [...], with `entries` xx xy x yx yy y of the upper two rows replaced."""
    zero, one = torch.zeros_like(amount), torch.ones_like(amount)
    usual = {"xx": one, "xy": zero, "x": zero, "yx": zero, "yy": one, "y": zero}
    return torch.stack([*(usual | entries).values(), zero, zero, one], -1).unflatten(-1, (3, 3))


# ---- changing colours ----


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """Brightness: images times 1 + amount [n], clamped to [0, 1]."""
    return adjust_brightness_accumulative(images, 1 + amount)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    """Contrast: the difference from the image's mean grey times 1 + amount [n], clamped to [0, 1]."""
    return adjust_contrast_with_mean_subtraction(images, 1 + amount)


def saturation(images: Tensor, amount: Tensor) -> Tensor:
    """Saturation: each pixel's difference from its grey times 1 + amount [n], clamped to [0, 1]."""
    return adjust_saturation_with_gray_subtraction(images, 1 + amount)


def hue_around_grey(images: Tensor, amount: Tensor) -> Tensor:
    """Hue as augmenters turn it: around the grey axis by `amount` [n] degrees (red to green), clamped to [0, 1].

    Linear in the image, so that greys have a gradient, which the hue of HSV has not.
    """
    angle = (amount * (math.pi / 180))[:, None, None, None]
    across = (images.roll(1, 1) - images.roll(-1, 1)) / math.sqrt(3)  # the colour crossed with the grey axis
    chroma = images - images.mean(1, keepdim=True)
    return (images + (angle.cos() - 1) * chroma + angle.sin() * across).clamp(0, 1)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Sharpness: the difference from the image smoothed by Pillow's kernel times 1 + amount [n], clamped to [0, 1].

    Border pixels stay as they are. kornia's is not exact at 0 and takes 3 to 10 times as long on a CPU.
    """
    wide = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    box = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    detail = (9 * images[..., 1:-1, 1:-1] - box) / 13  # the kernel is (box + 4 centre) / 13
    return torch.addcmul(images, F.pad(detail, (1, 1, 1, 1)), amount[:, None, None, None]).clamp(0, 1)


# ---- the set ----

EIGHT = (
    moving("rotate", [30.0], rotation, pixels=True),
    moving("translate_x", [0.33], translation_x),
    moving("translate_y", [0.33], translation_y),
    moving("shear_x", [0.3], shearing_x, pixels=True),
    colouring("brightness", 0.9, brightness),
    colouring("contrast", 0.9, contrast),
    colouring("saturation", 0.9, saturation),
    colouring("sharpness", 0.9, sharpness),
)


# ---- many at once ----


def apply_drawn(
    images: Tensor, op: Tensor, amount: Tensor, transforms: Sequence[Transform] = EIGHT, fill: Fill = BLACK
) -> Tensor:
    """Operation op[i,s] by amount[i,s] on image i, s = 0, 1, ...: contiguous [N,3,H,W], or the images if nothing acts.

    `op` [N,slots] int64 on the host: 0 is none, k is transforms[k - 1]. `amount` [N,slots,d]: an operation of fewer
    numbers takes the first ones. What moves pixels acts first, as one warp of the matrices in order of s, and the rest
    follows in order of s. An operation runs on the rows that drew it only; which rows these are is known on the host,
    without asking a device.
    """
    _check(images, op, amount, transforms)
    images = _move(images, op, amount, transforms, fill)
    amount = amount.to(images.device, images.dtype, non_blocking=True)
    for drawn, amounts in zip(op.unbind(1), amount.unbind(1), strict=True):
        images = _recolour(images, drawn, amounts, transforms)
    return images


def _move(images: Tensor, op: Tensor, amount: Tensor, transforms: Sequence[Transform], fill: Fill) -> Tensor:
    """One warp of the rows that drew an operation with a matrix; the matrices are computed where `amount` is."""
    matrix = _identity(amount).expand(*op.shape, 3, 3)
    moved, projective = torch.zeros(len(op), dtype=torch.bool), False
    for number, transform in enumerate(transforms, 1):
        mine = op == number
        if transform.matrix is not None and mine.any():
            moved |= mine.any(1)
            projective |= transform.projective
            mine = mine.to(amount.device, non_blocking=True)
            own = transform.matrix(torch.where(mine[..., None], amount, 0)[..., : len(transform.reach)])
            own = of_sides(own, *images.shape[2:]) if transform.pixels else own
            matrix = torch.where(mine[..., None, None], own, matrix)
    rows = moved.nonzero()[:, 0]
    if not len(rows):
        return images
    whole = reduce(compose, matrix.index_select(0, rows.to(matrix.device, non_blocking=True)).unbind(1))
    rows = rows.to(images.device, non_blocking=True)
    return images.index_copy(0, rows, warp(images.index_select(0, rows), whole, fill, projective=projective))


def _recolour(images: Tensor, op: Tensor, amount: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Each operation without a matrix on the rows that drew it; op [N], amount [N,d]."""
    drawn = [(t, (op == k).nonzero()[:, 0]) for k, t in enumerate(transforms, 1) if t.matrix is None]
    drawn = [(transform, rows) for transform, rows in drawn if len(rows)]
    if not drawn:
        return images
    sizes = [len(rows) for _, rows in drawn]
    order = torch.cat([rows for _, rows in drawn]).to(images.device, non_blocking=True)
    groups = images.index_select(0, order).split(sizes), amount.index_select(0, order).split(sizes)
    pieces = [t.apply(part, a[:, : len(t.reach)]) for (t, _), part, a in zip(drawn, *groups, strict=True)]
    return images.index_copy(0, order, torch.cat(pieces))


def _check(images: Tensor, op: Tensor, amount: Tensor, transforms: Sequence[Transform]) -> None:
    """ValueError unless shapes and types are what `apply_drawn` says."""
    if images.dtype not in (torch.float32, torch.float64) or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be float32 or float64 [N,3,H,W], found {images.dtype} {tuple(images.shape)}")
    if min(images.shape[2:]) < 3:
        raise ValueError(f"images must have sides of 3 pixels or more, found {tuple(images.shape[2:])}")
    if op.device.type != "cpu" or op.dtype != torch.int64 or op.ndim != 2:
        raise ValueError(f"op must be int64 [N,slots] on the host, found {op.dtype} {tuple(op.shape)} on {op.device}")
    most = max(len(transform.reach) for transform in transforms)
    if len(op) != len(images) or amount.shape != (*op.shape, most):
        found = f"{len(images)} images, op {tuple(op.shape)}, amount {tuple(amount.shape)}"
        raise ValueError(
            "there must be one operation and its amounts for each image and slot: op [N,slots] and amount "
            f"[N,slots,{most}], found {found}"
        )
    if op.numel() and not 0 <= int(op.min()) <= int(op.max()) <= len(transforms):
        raise ValueError(f"op must be in [0, {len(transforms)}], found {int(op.min())} to {int(op.max())}")


def _identity(like: Tensor) -> Tensor:
    return torch.eye(3, device=like.device, dtype=like.dtype)

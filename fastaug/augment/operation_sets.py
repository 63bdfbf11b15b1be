"""Sets of operations for a policy: from the entries of a file to the `Transform`s that act on images."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from fastaug.augment import colour_ops as colours
from fastaug.augment import differentiable_ops as ops
from fastaug.augment import local_ops as local
from fastaug.augment.differentiable_ops import BLACK, Fill, Transform
from fastaug.recipe.operation_files import FUNCTIONS, Operation, read_entries

Matrix = Callable[..., Tensor]
# Matrices by function: that of shares or of neither, whether it is in pixels, and that for values in pixels.
_MOVING: dict[str, tuple[Matrix, bool, Matrix | None]] = {
    "flip_x": (ops.mirror_x, False, None),
    "flip_y": (ops.mirror_y, False, None),
    "rotate": (ops.rotation, True, None),
    "translate_x": (ops.translation_x, False, ops.translation_x_pixels),
    "translate_y": (ops.translation_y, False, ops.translation_y_pixels),
    "shear_x": (ops.shearing_x, True, None),
    "shear_y": (ops.shearing_y, True, None),
    "scale": (ops.zoom, False, None),
    "scale_x": (ops.zoom_x, False, None),
    "scale_y": (ops.zoom_y, False, None),
    "perspective": (ops.tilt, False, None),
}
_COLOURING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": ops.brightness,
    "contrast": ops.contrast,
    "saturation": ops.saturation,
    "sharpness": ops.sharpness,
    "hue": colours.hue,
    "posterize": colours.posterize,
    "solarize": colours.solarize,
    "equalize": colours.equalize,
    "autocontrast": colours.autocontrast,
    "invert": colours.invert,
}


def read_operations(name_or_path: str, fill: Fill = BLACK) -> tuple[Transform, ...]:
    """The operations of a packaged set or of a file; RecipeError names file, entry and remedy.

    `fill` is what elastic distortion uncovers and cutout shows.
    """
    return transforms_of(read_entries(name_or_path), fill)


def transforms_of(entries: Sequence[Operation], fill: Fill = BLACK) -> tuple[Transform, ...]:
    """The transform of each entry."""
    return tuple(_transform(entry, fill) for entry in entries)


def _transform(entry: Operation, fill: Fill) -> Transform:
    low, high = _amounts(entry)
    reach = max(abs(low), abs(high))
    noise = (low / reach, high / reach)
    return _acting(entry, reach, fill)._replace(name=entry.name, noise=noise, fixed=entry.fixed)


def _amounts(entry: Operation) -> tuple[float, float]:
    """The range of an entry's values, measured from the value that changes nothing."""
    kind = FUNCTIONS[entry.function]
    if kind.neutral is None:
        return 1.0, 1.0
    if kind.log:
        return math.log(entry.low / kind.neutral), math.log(entry.high / kind.neutral)
    return round(entry.low - kind.neutral, 12), round(entry.high - kind.neutral, 12)  # 1.9 - 1 is 0.9


def _acting(entry: Operation, reach: float, fill: Fill) -> Transform:
    """The transform of an entry's function, up to name and noise."""
    name = entry.function
    if name in _MOVING:
        matrix, pixels, by_pixels = _MOVING[name]
        if entry.absolute and by_pixels is not None:
            matrix, pixels = by_pixels, True
        projective = name == "perspective"
        numbers = [reach] * (2 if projective else 1)
        return ops.moving(name, numbers, matrix, pixels=pixels, projective=projective, fill=fill)
    if name in _COLOURING:
        return ops.colouring(name, reach, _COLOURING[name])
    share = not entry.absolute
    if name == "cutout":
        return Transform(name, (reach, 1.0, 1.0), partial(local.cutout, share=share, fill=fill), free=2)
    if name == "elastic":
        return Transform(name, (reach,) * (2 * local.KNOTS**2), partial(local.elastic, fill=fill))
    if name == "blur":
        return Transform(name, (reach,), partial(local.blur, largest=reach, share=share))
    return Transform(name, (reach,), partial(local.stroke, largest=reach))

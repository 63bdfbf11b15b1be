"""Digital corruptions of an image [S, S, 3]: contrast, elastic deformation, large pixels, JPEG."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from fastaug.evaluation.corruptions.levels import Pixels, Values, levels_of, values_of


def contrast(image: Pixels, factor: float, _rng: np.random.Generator) -> Pixels:
    """Draws every channel towards its mean over the image, by a factor."""
    values = values_of(image)
    mean = values.mean((0, 1), keepdims=True)
    return levels_of((values - mean) * factor + mean)


def elastic(image: Pixels, parameters: tuple[float, float, float], rng: np.random.Generator) -> Pixels:
    """An affine map that moves three points of the image a little, then a smooth field of displacements.

    `parameters`: amount and standard deviation of the field, and how far, at most, each coordinate of a point moves.
    Bilinear interpolation; edges mirror.
    """
    amount, deviation, moves = parameters
    side, middle, reach = len(image), len(image) // 2, len(image) // 3
    points = np.array([[reach, reach], [reach, -reach], [-reach, -reach]], np.float64) + middle  # (x, y)
    moved = points + rng.uniform(-moves, moves, points.shape)
    back = _affine(moved, points)
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    x, y = np.tensordot(back[:, :2], np.stack([columns, rows]), 1) + back[:, 2, None, None]
    mapped = _looked_up(values_of(image), y, x, "mirror")
    right, down = (_field(side, deviation, amount, rng) for _ in range(2))
    return levels_of(_looked_up(mapped, rows + down, columns + right, "reflect"))


def _affine(of: Values, to: Values) -> Values:
    """The affine map [2, 3] that takes three points `of` [3, 2] to the points `to`."""
    return np.asarray(np.linalg.solve(np.column_stack([of, np.ones(3)]), to).T, np.float64)


def _field(side: int, deviation: float, amount: float, rng: np.random.Generator) -> Values:
    uniform = rng.uniform(-1, 1, (side, side))
    smooth: Values = ndimage.gaussian_filter(uniform, deviation, mode="reflect", truncate=3)
    return smooth * amount


def _looked_up(values: Values, rows: Values, columns: Values, edges: str) -> Values:
    """An image [H, W, C] at positions [H, W], between its pixels."""
    channels = np.moveaxis(values, -1, 0)
    return np.stack([ndimage.map_coordinates(one, (rows, columns), order=1, mode=edges) for one in channels], -1)


def pixelate(image: Pixels, factor: float, _rng: np.random.Generator) -> Pixels:
    """Shrinks an image by a factor and enlarges it again, with a box filter."""
    picture, side = Image.fromarray(image), len(image)
    small = max(1, int(side * factor))
    return np.asarray(picture.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX))


def jpeg(image: Pixels, quality: int, _rng: np.random.Generator) -> Pixels:
    """Written as a JPEG file of a quality and read back."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))

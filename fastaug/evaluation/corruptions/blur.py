"""Blurs of an image [S, S, C]: out of focus, behind frosted glass, by motion, by zooming in."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from fastaug.evaluation.corruptions.levels import Pixels, Values, levels_of, values_of


def defocus(image: Pixels, parameters: tuple[float, float], _rng: np.random.Generator) -> Pixels:
    """Convolves with a disc of a radius, whose edge is softened by a standard deviation; edges mirror."""
    kernel = disc(*parameters)
    reach = len(kernel) // 2
    padded = np.pad(values_of(image), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return levels_of(signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1)))


def disc(radius: float, softness: float) -> Values:
    """The kernel of `defocus`: a disc of sum 1 under a Gaussian of 3 x 3 taps, of 5 x 5 where the radius is above 8.

    The grid has 17 points a side, or as many as a larger radius needs; the Gaussian mirrors at its edge.
    """
    reach, taps = (8, 1) if radius <= 8 else (math.floor(radius), 2)
    line = np.arange(-reach, reach + 1)
    inside = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float64)
    inside /= inside.sum()
    gaussian = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        inside = ndimage.correlate1d(inside, gaussian / gaussian.sum(), axis=axis, mode="mirror")
    return inside


def glass(image: Pixels, parameters: tuple[float, int, int], rng: np.random.Generator) -> Pixels:
    """Blurs, lets pixels show near ones, several rounds of it, and blurs again.

    `parameters`: standard deviation of the blur, how far a pixel looks, rounds.
    """
    deviation, reach, rounds = parameters
    pixels = levels_of(_smooth(values_of(image), deviation))
    for _ in range(rounds):
        pixels = pixels.reshape(-1, pixels.shape[-1])[glass_sources(len(image), reach, rng)].reshape(image.shape)
    return levels_of(_smooth(values_of(pixels), deviation))


def glass_sources(side: int, reach: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which pixel each one shows after a round of `glass`, both as positions in a flat image: [side * side].

    From the last pixel to the first, without those nearer than `reach` to an edge, each takes what a drawn neighbour
    shows at that moment. (The published code means to swap the two; its assignment of views copies.) What a pixel shows
    is followed back by doubling steps: from a neighbour that has taken its turn to what that one took, and so on.
    """
    count, line = side * side, np.arange(reach + 1, side - reach + 1)
    own = (line[:, None] * side + line).reshape(-1)
    if not len(own):
        return np.arange(count)
    offset = rng.integers(-reach, reach, (2, len(own)))
    other = own + offset[0] * side + offset[1]
    row, column = np.divmod(other, side)
    taken = (row > reach) & (row <= side - reach) & (column > reach) & (column <= side - reach)
    # Nodes: a pixel as it was before the round, and, `count` further, as it is after it.
    leads = np.concatenate([np.arange(count), np.arange(count)])
    leads[count + own] = np.where(taken & (other > own), count + other, other)
    while not np.array_equal(further := leads[leads], leads):
        leads = further
    return leads[count:]


def motion(image: Pixels, parameters: tuple[int, float], rng: np.random.Generator) -> Pixels:
    """A camera that moves: see `streaked`; the direction is drawn from -45 to 45 degrees."""
    return levels_of(streaked(values_of(image), *parameters, rng.uniform(-45, 45)) + 0.5 / 255)


def streaked(values: Values, radius: int, deviation: float, angle: float) -> Values:
    """The mean of an image [H, W, ...] and its shifts by 1 to 2 `radius` pixels in a direction in degrees.

    Weights fall as half a Gaussian of standard deviation `deviation`; shifts are rounded to whole pixels, outside of
    the image its edge goes on: ImageMagick's motion blur.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in _direction(angle))
    rows, columns = np.arange(values.shape[0]), np.arange(values.shape[1])
    total = np.zeros_like(values)
    for weight, dy, dx in zip(weights / weights.sum(), down, right, strict=True):
        lines = np.take(values, np.clip(rows + dy, 0, rows[-1]), axis=0)
        total += weight * np.take(lines, np.clip(columns + dx, 0, columns[-1]), axis=1)
    return total


def _direction(angle: float) -> tuple[float, float]:
    return math.sin(math.radians(angle)), math.cos(math.radians(angle))


def zoom(image: Pixels, parameters: tuple[float, float], _rng: np.random.Generator) -> Pixels:
    """The mean of an image and itself at zoom factors from 1 to an end, in steps: (end, step)."""
    values = values_of(image)
    zoomed = [enlarged(values, factor) for factor in _factors(*parameters)]
    return levels_of((values + sum(zoomed)) / (len(zoomed) + 1))


def _factors(end: float, step: float) -> Iterator[float]:
    yield from np.arange(1, end, step)  # which may hold the end, as it rounds


def enlarged(values: Values, factor: float) -> Values:
    """The middle of an image [S, S, C], enlarged by a factor >= 1 with linear interpolation, at the same size."""
    side = len(values)
    kept = math.ceil(side / factor)
    first = (side - kept) // 2
    large = ndimage.zoom(values[first : first + kept, first : first + kept], (factor, factor, 1), order=1)
    trim = (len(large) - side) // 2
    return large[trim : trim + side, trim : trim + side]


def _smooth(values: Values, deviation: float) -> Values:
    """A Gaussian blur of an image [H, W, C], cut off at 4 standard deviations; its edge goes on outside."""
    return ndimage.gaussian_filter(values, (deviation, deviation, 0), mode="nearest", truncate=4)

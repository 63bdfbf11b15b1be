"""Weather over an image [S, S, 3]: snow, frost, fog, brightness."""

import numpy as np

from fastaug.evaluation.corruptions.blur import enlarged, streaked
from fastaug.evaluation.corruptions.levels import Pixels, Values, levels_of, values_of

_LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue
_ICE = np.array([0.86, 0.95, 1.0])  # colour of frost


def snow(image: Pixels, parameters: tuple[float, ...], rng: np.random.Generator) -> Pixels:
    """Whitens an image and adds streaks of flakes that fall, and the same turned by 180 degrees.

    `parameters`: mean and standard deviation of the noise that flakes are made of, zoom factor, threshold below which
    there is none, radius and standard deviation of their motion, how much of the image's own colours stays.
    """
    mean, deviation, factor, threshold, radius, motion, stays = parameters
    side, values = len(image), values_of(image)
    flakes = enlarged(rng.normal(mean, deviation, (side, side, 1)), factor)
    flakes = values_of(levels_of(np.where(flakes < threshold, 0, flakes)))
    flakes = values_of(levels_of(streaked(flakes, int(radius), motion, rng.uniform(-135, -45)) + 0.5 / 255))
    white = np.maximum(values, (values @ _LUMA)[..., None] * 1.5 + 0.5)
    return levels_of(stays * values + (1 - stays) * white + flakes + np.rot90(flakes, 2))


def frost(image: Pixels, parameters: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Adds frost to an image: (share of the image, share of the frost). The frost is drawn, see `ice`."""
    own, other = parameters
    return levels_of(own * values_of(image) + other * ice(len(image), rng))


def ice(side: int, rng: np.random.Generator) -> Values:
    """A pane with frost on it, [side, side, 3] in [0, 1]: bright ridges where the cover is thick.

    In place of the photographs of the published sets, crops of which are added there: other pixels, other errors.
    """
    size = _power_of_two(side)
    cover, fine = plasma(size, 2.0, rng)[:side, :side], plasma(size, 1.4, rng)[:side, :side]
    ridges = (1 - np.abs(2 * fine - 1)) ** 3
    return np.clip(0.15 + 0.45 * cover + 0.7 * cover * ridges, 0, 1)[..., None] * _ICE


def fog(image: Pixels, parameters: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Adds a height map, see `plasma`: (its amount, its decay); then darkens to the image's own largest value."""
    amount, decay = parameters
    side, values = len(image), values_of(image)
    largest = values.max()
    mist = plasma(_power_of_two(side), decay, rng)[:side, :side, None]
    return levels_of((values + amount * mist) * largest / (largest + amount))


def plasma(size: int, decay: float, rng: np.random.Generator) -> Values:
    """A random height map [size, size] in [0, 1] that repeats at its edges, by midpoints of squares and diamonds.

    `size` is a power of two. Each round fills in the middles of what is there, the mean of four neighbours and a
    uniform number, whose range begins at 100 squared and is divided by `decay` squared from round to round.
    """
    field, step, amplitude = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]

        def middle(total: Values, amplitude: float = amplitude) -> Values:
            return total / 4 + amplitude * rng.uniform(-amplitude, amplitude, total.shape)

        above = corners + np.roll(corners, -1, 0)
        centres = middle(above + np.roll(above, -1, 1))
        field[half::step, half::step] = centres
        beside = corners + np.roll(corners, -1, 1)
        field[::step, half::step] = middle(beside + centres + np.roll(centres, 1, 0))
        field[half::step, ::step] = middle(above + centres + np.roll(centres, 1, 1))
        step, amplitude = half, amplitude / decay
    field -= field.min()
    return field / field.max()


def brightness(image: Pixels, amount: float, _rng: np.random.Generator) -> Pixels:
    """Adds an amount to the value of HSV, which keeps hue and saturation: all channels grow by one factor."""
    values = values_of(image)
    value = values.max(-1, keepdims=True)
    lighter = np.minimum(value + amount, 1)
    return levels_of(np.where(value > 0, values * lighter / np.where(value > 0, value, 1), lighter))


def _power_of_two(side: int) -> int:
    """The smallest power of two that is not below `side`, at least 2."""
    return max(2, 1 << (side - 1).bit_length())

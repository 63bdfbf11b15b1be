"""Noise of an image [H, W, C]: every pixel and channel for itself."""

import numpy as np

from fastaug.evaluation.corruptions.levels import Pixels, levels_of, values_of


def gaussian(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Adds normal noise of a standard deviation, in units of white: as in low light."""
    return levels_of(values_of(image) + rng.normal(0, deviation, image.shape))


def shot(image: Pixels, photons: float, rng: np.random.Generator) -> Pixels:
    """Poisson noise of light that comes in `photons` where it is white."""
    return levels_of(rng.poisson(values_of(image) * photons) / photons)


def impulse(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Salt and pepper: a share of all values becomes 0 or 255, either as likely."""
    drawn = rng.random(image.shape)
    return np.where(drawn < share, np.where(drawn < share / 2, 0, 255), image).astype(np.uint8)

"""Between levels and numbers: uint8 images and their values in [0, 1]."""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float64]
_ROUNDING = 1e-4  # levels; sums of floats miss a level by less, and would lose it when what is left is cut off


def values_of(image: Pixels) -> Values:
    """An image in [0, 1]."""
    return image / 255.0


def levels_of(values: Values) -> Pixels:
    """Values, clipped to [0, 1], as an image; fractions of a level are cut off, as in the published sets."""
    return (np.clip(values, 0, 1) * 255 + _ROUNDING).astype(np.uint8)

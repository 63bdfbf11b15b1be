"""The 15 common corruptions at five severities (Hendrycks & Dietterich, ICLR 2019, arXiv:1903.12261), and their errors.

They act on images as they are cut out, between crop and normalisation, as those of ImageNet-C were made. What a
function computes and its parameters are those of the published sets; docs/calibration_and_robustness.md says where the
pixels differ: no random number is theirs, `frost` is drawn in place of photographs, and nothing is written as a JPEG.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.errors import RecipeError
from fastaug.evaluation.corruptions import blur, digital, noise, weather
from fastaug.evaluation.corruptions.published import ALEXNET, CIFAR, IMAGENET, SEVERITIES
from fastaug.seeding import Key, Stream, words

Pixels = npt.NDArray[np.uint8]

FUNCTIONS: dict[str, Callable[[Pixels, Any, np.random.Generator], Pixels]] = {  # in the order of the paper
    "gaussian_noise": noise.gaussian,
    "shot_noise": noise.shot,
    "impulse_noise": noise.impulse,
    "defocus_blur": blur.defocus,
    "glass_blur": blur.glass,
    "motion_blur": blur.motion,
    "zoom_blur": blur.zoom,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg,
}
NAMES = tuple(FUNCTIONS)
SHOWN = {"frost": "frost (procedural)"}  # what a name is called in results, where it is not what was published
BETWEEN = (32 * 224) ** 0.5  # pixels a side: nearer to 32 below it, and to 224 from it on


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, of images of `side` x `side` pixels: a change of single images."""

    name: str
    severity: int
    side: int

    def values(self, seed: int, ids: npt.NDArray[np.int64]) -> list[int]:
        """What each image's draws start from: a function of seed, corruption, severity and id."""
        number = len(SEVERITIES) * NAMES.index(self.name) + self.severity - 1
        return [int(word) for word in words(Key(seed, number, Stream.CORRUPTION), ids, 1)[:, 0]]

    def apply_one(self, image: Pixels, value: int) -> Pixels:
        """uint8 [S, S, 3] under the corruption."""
        parameters = (CIFAR if is_small(self.side) else IMAGENET)[self.name][self.severity - 1]
        return FUNCTIONS[self.name](image, parameters, np.random.default_rng(value))


def is_small(side: int) -> bool:
    """Whether images of so many pixels a side get the parameters of CIFAR-C."""
    return side < BETWEEN


def checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of corruptions in the order of the paper, each once; "all" is all. RecipeError for one that is none."""
    wanted = {name.strip() for name in names}
    problems = []
    for name in sorted(wanted - {"all", *NAMES}):
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        problems.append(f"corruptions: {name!r} is none; the nearest is {near}; all: {', '.join(NAMES)}")
    if problems or not wanted:
        raise RecipeError(problems or [f"corruptions: none is named; name some of {', '.join(NAMES)}, or all"])
    return NAMES if "all" in wanted else tuple(name for name in NAMES if name in wanted)


def checked_severities(severities: Iterable[int]) -> tuple[int, ...]:
    """The severities, each once, in order; RecipeError for others than 1 to 5, or none."""
    wanted = sorted(set(severities))
    if not wanted or not set(wanted) <= set(SEVERITIES):
        raise RecipeError([f"severities: {', '.join(map(str, wanted)) or 'none'}: they are 1 to 5, say 1..5 or 1,3"])
    return tuple(wanted)


def error_table(errors: Mapping[Corruption, float], clean: float, classes: int) -> dict[str, Any]:
    """The figures of errors (1 - top-1) under corruptions, beside that of `clean` images.

    `mce`: mean over corruptions of the mean over severities, not normalised. `mce_alexnet`: the paper's mCE, the mean
    over corruptions of CE_c = sum_s E(s, c) / sum_s E_AlexNet(s, c), a quotient of means too; None unless all
    15 at all severities were measured on images of 224 pixels and 1,000 classes, as AlexNet was.
    """
    (side,) = {one.side for one in errors}
    names: Sequence[str] = list(dict.fromkeys(one.name for one in errors))
    severities = sorted({one.severity for one in errors})
    table = {name: {s: errors[Corruption(name, s, side)] for s in severities} for name in names}
    means = {name: fmean(row.values()) for name, row in table.items()}
    comparable = side == 224 and classes == 1000 and len(table) == len(NAMES) and tuple(severities) == SEVERITIES
    return {
        "parameters": "CIFAR-C (32 px)" if is_small(side) else "ImageNet-C (224 px)",
        "img_size": side,
        "severities": severities,
        "clean_error": clean,
        "errors": {SHOWN.get(name, name): {str(s): e for s, e in row.items()} for name, row in table.items()},
        "mean_errors": {SHOWN.get(name, name): mean for name, mean in means.items()},
        "mce": fmean(means.values()),
        "mce_alexnet": fmean(means[name] / ALEXNET[name] for name in NAMES) if comparable else None,
    }

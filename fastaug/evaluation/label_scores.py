"""How suspicious a label looks, by the statistics of single images: one number each, and which class it should be.

Scores are those of cleanlab's reports: in [0, 1], low is bad.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.evaluation.sample_file import Samples

Scores = npt.NDArray[np.float64]


def label_scores(samples: Samples) -> Scores:
    """The score [N] of each image's label: how probable it is beside the likeliest other class, over the run.

    NaN where nothing is known. Beside the other class rather than alone: where many labels of a class are wrong in the
    same way, right ones too are only half probable.
    """
    return score_of(samples["probability"], samples["other_probability"])


def score_of(given: npt.NDArray[Any], other: npt.NDArray[Any]) -> Scores:
    """`label_scores` from the probabilities [N] of the given label and of the likeliest other class."""
    total = given.astype(np.float64) + other
    return np.where(total > 0, given / np.where(total > 0, total, 1), np.nan)


def suspected(samples: Samples) -> npt.NDArray[np.bool_]:
    """Which images [N] look wrongly labelled: another class is more probable than the given one."""
    found: npt.NDArray[np.bool_] = label_scores(samples) < 0.5
    return found


def predicted(samples: Samples) -> npt.NDArray[Any]:
    """The class [N] that each image looks like: the other one where that is likelier, -1 where nothing is known."""
    known = ~np.isnan(label_scores(samples))
    return np.where(known, np.where(suspected(samples), samples["other"], samples["trained"]), -1)


def confusion(samples: Samples, classes: int) -> npt.NDArray[np.float64]:
    """How many images of class a look labelled b: [C, C], 0 on the diagonal. Labels flipped on purpose do not count."""
    wrong = suspected(samples) & (samples["trained"] == samples["given"])
    counts = np.zeros((classes, classes))
    np.add.at(counts, (samples["other"][wrong], samples["given"][wrong]), 1)
    return counts


def confident(samples: Samples) -> npt.NDArray[np.bool_]:
    """Which images [N] are confidently of another class: for held-out images, of which the network has not learned.

    The other class is at least as probable as it is on average for the images labelled so (Northcutt et al. 2021,
    "Confident learning"; of the likeliest class alone, as no other is kept).
    """
    given, chance = samples["given"], samples["probability"].astype(np.float64)
    size = int(max(given.max(initial=-1), samples["other"].max(initial=-1))) + 1
    images = np.bincount(given, minlength=size)
    mean = np.bincount(given, chance, size) / np.maximum(images, 1)
    threshold = np.where(images > 0, mean, np.inf)  # a class without images tells nothing
    return suspected(samples) & (samples["other_probability"] >= threshold[samples["other"]])

"""Images that are nearly the same but are labelled differently, or lie in different splits.

They are compared by their pixels: 16 x 16 grey values, without their mean, by the cosine between them. Features of a
network trained on the same classes do not serve: it draws all images of a class together.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastaug.data.build import DataParts
from fastaug.data.image_headers import Status
from fastaug.data.splits import ROLES
from fastaug.reports.thumbnails import opened

SIDE, ALIKE, MOST = 16, 0.995, 50_000  # of the small images; cosine of a pair; images that all are compared with all
_BLOCK = 2048


class Pair(NamedTuple):
    """Two images by their ids, the lower one first, and the cosine between them."""

    one: int
    two: int
    cosine: float


def near_duplicates(parts: DataParts, alike: float = ALIKE) -> list[Pair]:
    """The pairs of at least cosine `alike`, the most alike first; ValueError of more images than MOST."""
    assert parts.index is not None
    ids = np.sort(np.concatenate([parts.splits.of(role) for role in ROLES]))
    ids = ids[parts.index.status[ids] != Status.DAMAGED]
    if len(ids) > MOST:
        raise ValueError(f"near duplicates are not looked for among {len(ids)} images, only up to {MOST}")
    split = np.zeros(len(parts.index), dtype=np.int8)
    for number, role in enumerate(ROLES):
        split[parts.splits.of(role)] = number
    labels, kept, rows = parts.given_labels(), [], []
    for image in ids.tolist():
        if (row := _small(parts, image)) is not None:
            kept.append(image)
            rows.append(row)
    found = np.array(kept, dtype=np.int64)
    pairs = alike_pairs(np.array(rows, dtype=np.float32).reshape(len(found), SIDE * SIDE), alike)
    named = (Pair(int(found[a]), int(found[b]), cosine) for a, b, cosine in pairs)
    odd = [pair for pair in named if labels[pair.one] != labels[pair.two] or split[pair.one] != split[pair.two]]
    return sorted(odd, key=lambda pair: (-pair.cosine, pair.one, pair.two))


def _small(parts: DataParts, image: int) -> npt.NDArray[np.float32] | None:
    """The small grey image without its mean, of length 1; None of one that cannot be read or is of one colour."""
    assert parts.index is not None
    try:
        picture = opened(parts.index, image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    grey = grey - grey.mean()
    length = float(np.linalg.norm(grey))
    return grey / length if length > SIDE else None  # a grey value of contrast on average


def alike_pairs(rows: npt.NDArray[np.float32], alike: float) -> Iterator[tuple[int, int, float]]:
    """The pairs of `rows` [N, D] of length 1 whose product is at least `alike`: exact, block by block."""
    for low in range(0, len(rows), _BLOCK):
        for other in range(low, len(rows), _BLOCK):
            products = rows[low : low + _BLOCK] @ rows[other : other + _BLOCK].T
            for a, b in np.argwhere(products >= alike).tolist():
                if low + a < other + b:
                    yield low + a, other + b, float(products[a, b])

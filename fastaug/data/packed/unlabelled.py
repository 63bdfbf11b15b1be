"""The images of a packed set for prediction: of all its splits, whether they have labels or not."""

import numpy as np

from fastaug.data.folders import Folder
from fastaug.data.packed.index import FORMATS, PackedIndex, PackedSet, columns, fill_in, opened
from fastaug.data.packed.records import Keys
from fastaug.errors import DataError


def packed_set(word: str, image: str | None = None) -> PackedSet | None:
    """The packed set that `word` names, as "wds:PLACE"; None where it names a file or folder. `image`: input_key."""
    kind, _, place = word.partition(":")
    return PackedSet(kind, place, Keys(image=image, labelled=False)) if kind in FORMATS and place else None


def load_unlabelled(
    packed: PackedSet, classes: tuple[str, ...], *, exif: str, threads: int, progress: bool = False
) -> PackedIndex:
    """The index of all images of a packed set, ids in its order; labels are not read, those of the index are all 0.

    It is made anew every time; only the Arrow files that parquet is made into are cached. DataError where the set has
    no image, or cannot be read.
    """
    try:
        found, files = opened(packed, progress)
        records = FORMATS[packed.kind].read(found, packed.keys).records
    except DataError as error:
        text = str(error).removeprefix("data.root: ").replace("data.input_key", "--input-key")  # there is no recipe
        raise DataError(text) from error
    if not records:
        raise DataError(f"{packed}: no image in it; name a set that holds some")
    labels, folders = np.zeros(len(records), np.int64), np.full(len(records), Folder.TEST, np.uint8)
    table = {"root": found.root, "classes": classes, "labels": labels, "folders": folders, **columns(records)}
    fill_in(table, files, exif, threads, progress)
    return PackedIndex(**table, files=files)

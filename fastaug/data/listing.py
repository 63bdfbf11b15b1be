"""The listing of a data root: which files are images of which class and split, by folders or by a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.channel_files import ENDINGS, reads_channels
from fastaug.data.class_map import KEY, ClassMap
from fastaug.data.folder_listing import Rows, images_in_folders
from fastaug.data.folders import EXTENSIONS, Walk
from fastaug.data.image_table import KEY as TABLE
from fastaug.data.image_table import table_rows
from fastaug.data.multi_label import multi_label_rows
from fastaug.data.sheets import digest_of


@dataclass(frozen=True)
class Listing:
    """How images are listed: by the file `table`, else by folders; the others as in the recipe.

    `channels`: that image files must have; 1 and 3 are one listing, of files that can be made RGB.
    """

    table: Path | None = None
    class_level: str = "top"
    class_map: Path | None = None
    multi_label: str = "off"
    separator: str = "|"
    channels: int = 3

    def name(self) -> str:
        """What tells listings of one root apart; "" for the usual one."""
        if self == USUAL:
            return ""
        files = (None if file is None else str(file.expanduser().resolve()) for file in (self.table, self.class_map))
        deep = (self.channels,) if reads_channels(self.channels) else ()
        return repr((*files, self.class_level, self.multi_label, self.separator, *deep))

    def endings(self) -> tuple[bytes, ...]:
        """Those of files that are images."""
        return (*EXTENSIONS, *ENDINGS) if reads_channels(self.channels) else EXTENSIONS

    def digest(self) -> str:
        """What changes with the bytes of the files that are read besides folders; DataError where one cannot be."""
        files = ((self.table, TABLE), (self.class_map, KEY))
        return " ".join(digest_of(file, key) for file, key in files if file is not None)


USUAL = Listing()  # class folders, the topmost, under their own names


class Found(NamedTuple):
    """What was listed: classes, images sorted by path, and a text of images left out by the map.

    multi_hot: uint8 [N, C], the classes of each, where they have any number of them.
    """

    classes: tuple[str, ...]
    rows: Rows
    unmapped: str
    multi_hot: npt.NDArray[np.uint8] | None = None


def find_images(walk: Walk, listing: Listing, threads: int = 1, progress: bool = False) -> Found:
    """The images below the root of `walk`, by `threads` threads; DataError when they cannot be trained on."""
    if listing.table is not None and listing.multi_label != "off":
        found = multi_label_rows(listing.table, walk.root, listing.multi_label, listing.separator)
        return Found(found.classes, Rows.of(found.rows), "", found.multi_hot)
    names = ClassMap(listing.class_map)
    if listing.table is not None:
        classes, listed = table_rows(listing.table, walk.root, names)
        rows = Rows.of(listed)
    else:
        classes, rows = images_in_folders(walk, listing.class_level, names, threads, progress)
    return Found(classes, rows, names.said())

"""Published sets of image files whose labels stand in files of their own: Tiny-ImageNet and ImageNet.

`tiny_imagenet:FOLDER` and `imagenet:FOLDER` as data.root. Where the images are files, the set becomes a table of path,
label and split in cache_dir()/"listed", read as data.table would be. ImageNet's tars are read where they lie, the tars
in the tar of the training images too, as a packed set.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fastaug.atomic_files import write_atomically
from fastaug.data.index import cache_dir
from fastaug.data.packed.imagenet import ARCHIVES, DEVKIT, in_folder
from fastaug.data.packed.index import PackedSet
from fastaug.data.packed.records import Record
from fastaug.data.sources.published import PUBLISHED, listed, refuse_other_counts, refuse_other_files
from fastaug.data.sources.tiny_imagenet import images_of
from fastaug.errors import DataError, StorageError

_DEVKIT = f"{DEVKIT}.tar.gz"


@dataclass(frozen=True)
class ListedSet:
    """A folder of images, and the table that was made of its lists."""

    kind: str
    root: Path
    table: Path

    def __str__(self) -> str:
        return f"{self.kind}:{self.root}"


def tiny_imagenet(place: str, verify: bool) -> ListedSet:
    """Tiny-ImageNet in its folder; DataError where it is not there, with `verify` where it is not whole."""
    root = Path(place).expanduser().absolute()
    return _listed("tiny_imagenet", root, images_of(root), verify)


def imagenet(place: str, verify: bool) -> ListedSet | PackedSet:
    """ImageNet (ILSVRC 2012) in its folder, as `tiny_imagenet`."""
    root = Path(place).expanduser().absolute()
    folders = [split for split in ARCHIVES if (root / split).is_dir()]
    tars = {split: root / name for split, name in ARCHIVES.items() if split not in folders}
    if missing := [split for split, path in tars.items() if not path.is_file()]:
        needed = " and ".join(f"{split}/ or {listed('imagenet', [ARCHIVES[split]])}" for split in missing)
        raise DataError(f"data.root: imagenet:{root} lacks {needed}; put it there, and {listed('imagenet', [_DEVKIT])}")
    images = {split: in_folder(root, split) for split in folders}
    if not tars:
        return _listed("imagenet", root, [image for split in ARCHIVES for image in images[split]], verify)
    if verify:
        refuse_other_files("imagenet", tars.values(), digests=False)  # of 148 GB
        known = {"train": PUBLISHED["imagenet"].train, "val": PUBLISHED["imagenet"].test}
        counts = known | {split: len(found) for split, found in images.items()}
        refuse_other_counts("imagenet", root, counts["train"], counts["val"])
    return PackedSet("imagenet", str(root))


def _listed(kind: str, root: Path, images: Iterable[Record], verify: bool) -> ListedSet:
    rows = [(image.name, image.label, image.split) for image in images]
    if verify:
        train = sum(split == "train" for _, _, split in rows)
        refuse_other_counts(kind, root, train, len(rows) - train)
    text = io.StringIO()
    csv.writer(text).writerows([("path", "label", "split"), *rows])
    content = text.getvalue().encode(errors="surrogateescape")
    table = cache_dir() / "listed" / f"{kind}-{hashlib.sha256(content).hexdigest()[:16]}.csv"
    try:
        if not table.is_file():
            table.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(table, content)
    except OSError as error:
        raise StorageError(f"{table} cannot be written ({error}); set FASTAUG_CACHE to a folder with room") from error
    return ListedSet(kind, root, table)


LISTED: dict[str, Callable[[str, bool], ListedSet | PackedSet]] = {
    "tiny_imagenet": tiny_imagenet,
    "imagenet": imagenet,
}

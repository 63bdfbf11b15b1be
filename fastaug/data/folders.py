"""The folders below a data root: layout, roles, classes and image files.

Layouts: (a) `train/` beside any of val|validation|valid, test, meta, select, each holding class folders;
(b) class folders directly below the root. Images are searched at any depth below a class folder, links too.
Ignored: names with a leading dot, files without an image's extension, files outside every class folder and,
in layout (a), other folders beside `train/`.
"""

import os
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path

from fastaug.errors import DataError

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".bmp", b".webp", b".tif", b".tiff", b".gif", b".ppm", b".pgm")
SHOWN = 10  # names listed in a message


class Folder(IntEnum):
    """The folder an image was found in: ALL for one folder of classes, else its role."""

    ALL = 0
    TRAIN = 1
    META = 2
    SELECT = 3
    TEST = 4


def stamp(path: bytes) -> int:
    """When a folder's entries last changed, in ns; -1 without access."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


class Walk:
    """Walks the folders below `root`; remembers in `watch` each one read and its stamp, taken before reading."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.watch: dict[bytes, int] = {}

    def identity(self, relative: bytes) -> tuple[int, int]:
        """What tells two folders apart, whatever links lead to them."""
        path = os.path.join(self.root, relative)
        try:
            found = os.stat(path)
        except OSError as error:
            raise _unlisted(path, error) from error
        return found.st_dev, found.st_ino

    def entries(self, relative: bytes) -> Iterator[tuple[bytes, bool]]:
        """The visible entries of a folder: (path relative to root, whether it is a folder)."""
        path = os.path.join(self.root, relative)
        self.watch[relative] = stamp(path)
        try:
            with os.scandir(path) as found:
                for entry in found:
                    if not entry.name.startswith(b"."):
                        yield os.path.join(relative, entry.name), _is_folder(entry)
        except OSError as error:
            raise _unlisted(path, error) from error

    def folders(self, relative: bytes) -> list[str]:
        """Names of the visible folders in a folder, sorted."""
        return sorted(os.fsdecode(os.path.basename(path)) for path, folder in self.entries(relative) if folder)

    def images(self, relative: bytes) -> Iterator[bytes]:
        """Image files at any depth below a class folder; a link back to a folder above is not followed."""
        above = frozenset(self.identity(path) for path in (b"", os.path.dirname(relative)))
        stack = [(relative, above)]
        while stack:
            top, above = stack.pop()
            identity = self.identity(top)
            if identity in above:
                continue
            for path, folder in self.entries(top):
                if folder:
                    stack.append((path, above | {identity}))
                elif path.lower().endswith(EXTENSIONS):
                    yield path


def _unlisted(path: bytes, error: OSError) -> DataError:
    return DataError(f"{os.fsdecode(path)} cannot be listed ({error.strerror}); repair or remove it")


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere; listed, and found damaged, if it is named like an image
        return False


def layout_of(walk: Walk) -> dict[str, Folder]:
    """The folders that hold class folders, relative to the root, and their roles; the training one first."""
    names = walk.folders(b"")
    val = Folder.SELECT if "test" in names else Folder.TEST
    known = {"val": val, "validation": val, "valid": val, "test": Folder.TEST}
    known |= {"meta": Folder.META, "select": Folder.SELECT}
    roles = {name: known[name] for name in names if name in known}
    if "train" not in names or not roles:
        return {"": Folder.ALL}
    roles = {"train": Folder.TRAIN, **roles}
    root = os.fsdecode(walk.root)
    for role in Folder:
        same = [name for name in roles if roles[name] == role]
        if len(same) > 1:
            raise DataError(f"{root}: {' and '.join(same)} would both be the {role.name.lower()} split; keep one")
    places: dict[tuple[int, int], str] = {}
    for name in roles:
        other = places.setdefault(walk.identity(os.fsencode(name)), name)
        if other != name:
            raise DataError(f"{root}: {name} and {other} are the same folder; splits must not share images")
    return roles


def some(names: Iterable[str]) -> str:
    """The first of `names`, and how many more there are, for a message."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def classes_of(walk: Walk, layout: dict[str, Folder]) -> tuple[str, ...]:
    """The class names: equal in train and evaluation folders; meta and select may lack some, not add any."""
    root = Path(os.fsdecode(walk.root))
    (first, *others) = layout
    classes = walk.folders(os.fsencode(first))
    if not classes:
        raise DataError(f"{root / first} holds no class folders; put the images of each class into a folder of its own")
    if len(classes) == 1:
        hint = "; a lone train folder: point data.root at it, or add val beside it" if classes == ["train"] else ""
        raise DataError(f"{root / first} holds one class only ({classes[0]}); at least two are needed{hint}")
    for name in others:
        found = walk.folders(os.fsencode(name))
        extra = set(found) - set(classes)
        missing = set(classes) - set(found) if name not in ("meta", "select") else set()
        if extra or missing:
            parts = [f"lacks {some(missing)}"] if missing else []
            parts += [f"has {some(extra)}, which {first} has not"] if extra else []
            raise DataError(f"classes of {root / name} differ from {first}: it {' and '.join(parts)}; make them equal")
    return tuple(classes)


def image_rows(walk: Walk, layout: dict[str, Folder], classes: tuple[str, ...]) -> list[tuple[bytes, int, int]]:
    """(path relative to the root, label, Folder) of every image, sorted by path."""
    rows: list[tuple[bytes, int, int]] = []
    empty: list[str] = []
    for name, role in layout.items():
        for label, label_name in enumerate(classes):
            relative = os.path.join(os.fsencode(name), os.fsencode(label_name))
            if not os.path.isdir(os.path.join(walk.root, relative)):
                continue  # meta and select may lack a class
            found = [(path, label, int(role)) for path in walk.images(relative)]
            rows += found
            empty += [] if found else [os.fsdecode(relative)]
    if empty:
        root = os.fsdecode(walk.root)
        raise DataError(f"{root}: no image in class folder {some(empty)}; add images or remove the folder")
    return sorted(rows)

"""The folders below a data root: layout, roles, classes and image files.

Layouts: (a) a training folder beside any of those for evaluation, meta step and selection, each holding class folders;
(b) class folders directly below the root. `_SPLITS` has the names of (a), in any case, alone or with "set", "images" or
a number behind (`Train`, `test_set`, `val2017`). Splits are never taken for classes: a root that has folders of such
names and is not of layout (a) is refused. Images are searched at any depth below a class folder, links too: classes are
the folders at the top. Where the level "leaf" is asked for, they are the folders that hold images themselves, at any
depth, named as these. A class map (class_map.py) may rename, join and leave out classes of either kind.
Ignored: names with a leading dot, files without an image's extension, files outside every class folder and,
in layout (a), folders of other names beside the training one.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

from fastaug.data.class_map import ClassMap
from fastaug.data.class_names import shown, some
from fastaug.data.file_stamps import in_range
from fastaug.data.path_table import PathTable
from fastaug.errors import DataError

EXTENSIONS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".bmp", b".webp", b".tif", b".tiff", b".gif", b".avif"),
    *(b".jp2", b".j2k", b".ppm", b".pgm", b".pbm", b".pnm"),
)
# Endings of images that are not read: counted and said, so that nobody trains without them unknowingly.
OTHER_EXTENSIONS = (
    *(b".heic", b".heif", b".jxl", b".tga", b".svg", b".psd", b".dng", b".cr2", b".nef", b".arw"),
    *(b".exr", b".dds"),
)


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
        return in_range(os.stat(path).st_mtime_ns)
    except OSError:
        return -1


class Walk:
    """Walks the folders below `root`; remembers in `watch` each one read and its stamp, taken before reading."""

    def __init__(self, root: bytes, endings: tuple[bytes, ...] = EXTENSIONS) -> None:
        """`endings`: of the files that are images."""
        self.root, self.endings = root, endings
        self.watch: dict[bytes, int] = {}
        self.left_out = Counter[str]()  # files of OTHER_EXTENSIONS that `images` met, by ending

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
        head = relative and relative + b"/"
        try:
            with os.scandir(path) as found:
                for entry in found:
                    if not entry.name.startswith(b"."):
                        yield head + entry.name, _is_folder(entry)
        except OSError as error:
            raise _unlisted(path, error) from error

    def folders(self, relative: bytes) -> list[str]:
        """Names of the visible folders in a folder, sorted."""
        return sorted(os.fsdecode(os.path.basename(path)) for path, folder in self.entries(relative) if folder)

    def images(self, relative: bytes, *, deep: bool = True) -> Iterator[bytes]:
        """Image files in a class folder, where `deep` at any depth; a link back to a folder above is not followed."""
        for _, files in self.tree(relative, deep=deep):
            for path in files:
                if path.lower().endswith(self.endings):
                    yield path
                else:
                    self.left_out[os.fsdecode(os.path.splitext(path)[1].lower())] += 1

    def tree(self, relative: bytes, *, deep: bool = True) -> Iterator[tuple[bytes, list[bytes]]]:
        """A folder and, where `deep`, those at any depth below it, with the files of images in each, read or not."""
        above = frozenset(self.identity(path) for path in (b"", os.path.dirname(relative)))
        stack, endings = [(relative, above)], (*self.endings, *OTHER_EXTENSIONS)
        while stack:
            top, above = stack.pop()
            identity = self.identity(top)
            if identity in above:
                continue
            files = []
            for path, folder in self.entries(top):
                if folder and deep:
                    stack.append((path, above | {identity}))
                elif not folder and path.lower().endswith(endings):
                    files.append(path)
            yield top, files

    def apart(self, relative: bytes, deep: bool) -> tuple["Walk", PathTable]:
        """Another walk of the same root, and the images that it found in a class folder, sorted."""
        walk = Walk(self.root, self.endings)
        return walk, PathTable.of(sorted(walk.images(relative, deep=deep)))

    def others(self) -> str:
        """How many files there were of each of OTHER_EXTENSIONS, as text."""
        return ", ".join(f"{count} {ending}" for ending, count in sorted(self.left_out.items()))


def _unlisted(path: bytes, error: OSError) -> DataError:
    return DataError(f"{os.fsdecode(path)} cannot be listed ({error.strerror}); repair or remove it")


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads nowhere; listed, and found damaged, if it is named like an image
        return False


_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "tests", "testing", "eval", "evaluation"),
    "meta": ("meta",),
    "select": ("select", "selection"),
}
_SPLIT_NAMES = {word: role for role, words in _SPLITS.items() for word in words}
ROLES = {"train": Folder.TRAIN, "test": Folder.TEST, "meta": Folder.META, "select": Folder.SELECT}


def split_of(name: str) -> str | None:
    """The split that a folder's or a table's word stands for: a key of ROLES or "val"; None for any other word."""
    letters = re.sub(r"[\W\d_]+", "", name.casefold())
    return _SPLIT_NAMES.get(re.sub(r"(?<=.)(set|split|data|images|imgs)$", "", letters))


def layout_of(walk: Walk) -> dict[str, Folder]:
    """The folders that hold class folders, relative to the root, and their roles; the training one first."""
    names = walk.folders(b"")
    splits = {name: split for name in names if (split := split_of(name))}
    if "train" not in splits.values() or len(set(splits.values())) == 1:
        _refuse_hidden_splits(walk, names, splits)
        return {"": Folder.ALL}
    val = Folder.SELECT if "test" in splits.values() else Folder.TEST
    role_of = ROLES | {"val": val}
    roles = {name: role_of[split] for name, split in splits.items()}
    roles = dict(sorted(roles.items(), key=lambda item: item[1] != Folder.TRAIN))
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


def _refuse_hidden_splits(walk: Walk, names: list[str], splits: dict[str, str]) -> None:
    """DataError where folders named as splits would be trained as classes: several of them, or one that holds classes.

    One alone may be a class, a train beside a car; not if folders in it are named as others beside it or in those.
    """
    root = os.fsdecode(walk.root)
    if len(set(splits.values())) > 1:
        raise DataError(
            f"{root}: {' and '.join(map(shown, splits))} are names of splits, but none is a training folder; rename "
            "the one to train on to train, or rename folders that are classes"
        )
    for name in splits:
        within = set(walk.folders(os.fsencode(name)))
        for other in names if within else ():
            if other != name and within & {other, *walk.folders(os.fsencode(other))}:
                raise DataError(
                    f"{root}: {shown(name)} is the name of a split, and its folders ({some(within)}) are named as "
                    f"those in or beside {shown(other)}: splits would be trained as classes; name the splits train, "
                    "val and test, or point data.root at the folder that holds the classes"
                )


def class_folders(walk: Walk, split: str, level: str, names: ClassMap) -> dict[str, list[bytes]]:
    """Class name -> its folders, relative to the root, of the folder `split` of a layout; counts what the map drops.

    DataError where two folders of the level "leaf" have one name, and the map says nothing of them.
    """
    top = os.fsencode(split)
    found = [os.path.join(top, os.fsencode(name)) for name in walk.folders(top)]
    if level == "leaf":
        found = sorted(folder for path in found for folder, files in walk.tree(path) if files)
    classes: dict[str, list[bytes]] = {}
    unmapped: dict[str, bytes] = {}
    for folder in found:
        below, name = os.fsdecode(os.path.relpath(folder, top or b".")), os.fsdecode(os.path.basename(folder))
        new = names.of(name, below)
        if not new:
            names.left_out[below] += sum(1 for _ in walk.images(folder, deep=level == "top"))
            continue
        kept = name not in names and below not in names
        if kept and (first := unmapped.setdefault(name, folder)) != folder:
            both = " and ".join(shown(os.fsdecode(path)) for path in (first, folder))
            text = f"{os.fsdecode(walk.root)}: {both} would both be class {shown(name)}"
            raise DataError(f"{text}; rename one, or name them in a data.class_map")
        classes.setdefault(new, []).append(folder)
    return classes


def classes_of(walk: Walk, layout: dict[str, Folder], folders: dict[str, dict[str, list[bytes]]]) -> tuple[str, ...]:
    """The class names: equal in train and evaluation folders; meta and select may lack some, not add any."""
    root = Path(os.fsdecode(walk.root))
    (first, *others) = layout
    classes = sorted(folders[first])
    if not classes:
        raise DataError(f"{root / first} holds no class folders; put the images of each class into a folder of its own")
    if len(classes) == 1:
        hint = _hint_for_one(walk, os.fsdecode(folders[first][classes[0]][0]))
        raise DataError(f"{root / first} holds one class only ({shown(classes[0])}); at least two are needed{hint}")
    for name in others:
        found = list(folders[name])
        extra = set(found) - set(classes)
        missing = set(classes) - set(found) if layout[name] not in MAY_LACK else set()
        if extra or missing:
            parts = [f"lacks {some(missing)}"] if missing else []
            parts += [f"has {some(extra)}, which {first} has not"] if extra else []
            remedy = "add images of what it lacks, or remove" if missing else "remove"
            raise DataError(
                f"classes of {root / name} differ from {first}: it {' and '.join(parts)}; {remedy} or rename the class "
                "folders that only one of them has"
            )
    return tuple(classes)


MAY_LACK = (Folder.META, Folder.SELECT)  # some of the classes


def _hint_for_one(walk: Walk, only: str) -> str:
    """What to do about a root whose one class folder, `only`, is no class."""
    if split_of(os.path.basename(only)):
        return "; a lone folder of a split: point data.root at it, or add val beside it"
    inside = walk.folders(os.fsencode(only))
    return f"; it holds {len(inside)} folders: if they are the classes, point data.root at it" if inside else ""

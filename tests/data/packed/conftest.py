"""The same pictures as a folder and in each format of packed sets."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fastaug.data.index import Index, load_index


class Picture(NamedTuple):
    """An encoded image, the name of its class, its name and its split."""

    content: bytes
    label: str
    name: str
    split: str


@pytest.fixture(scope="session")
def picture_root(tmp_path_factory: pytest.TempPathFactory, jpegs: Callable[..., Path]) -> Path:
    """A folder of 12 training and 6 test photographs of three classes, one of them in PNG."""
    root = jpegs(tmp_path_factory.mktemp("pictures"), classes=3, images=4, splits=("train",))
    jpegs(root, classes=3, images=2, splits=("val",))
    from PIL import Image

    first = root / "train" / "class1" / "001.jpg"
    Image.open(first).save(first.with_suffix(".png"))
    first.unlink()
    return root


@pytest.fixture(scope="session")
def folder(picture_root: Path) -> Index:
    return load_index(picture_root, threads=1)


@pytest.fixture(scope="session")
def pictures(folder: Index) -> list[Picture]:
    """Its images, in an order that is not that of paths."""
    found = []
    for row in np.random.default_rng(3).permutation(len(folder)).tolist():
        path = Path(folder.path(row).decode())
        split, label, name = path.parts[-3:]
        found.append(Picture(path.read_bytes(), label, f"{label}_{name}", split))
    return found


def split_of(pictures: Iterable[Picture], split: str) -> list[Picture]:
    return [picture for picture in pictures if picture.split == split]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, picture: Picture, number: int, kind: str = "cls") -> list[tuple[str, bytes]]:
    """Members of one WebDataset sample."""
    label = str(number).encode() if kind == "cls" else json.dumps({"label": number, "name": picture.label}).encode()
    return [(f"{key}.{picture.name.rpartition('.')[2]}", picture.content), (f"{key}.{kind}", label)]


def write_wds(root: Path, pictures: Sequence[Picture], tars: int = 2, kind: str = "cls") -> Path:
    """Tars of each split, samples named by their row, labels the place of the class."""
    for split in dict.fromkeys(picture.split for picture in pictures):
        own = split_of(pictures, split)
        for number in range(tars):
            rows = range(number, len(own), tars)
            members = [m for row in rows for m in sample(f"{row:06d}", own[row], int(own[row].label[-1]), kind)]
            write_tar(root / f"{split}-{number:03d}.tar", members)
    return root

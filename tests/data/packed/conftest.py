"""The same pictures as a folder and in each format of packed sets."""

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.ipc
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
def in_order(folder: Index) -> list[Picture]:
    """The pictures of `folder` in the order of its ids."""
    paths = [Path(folder.path(id).decode()) for id in range(len(folder))]
    return [Picture(path.read_bytes(), path.parts[-2], path.name, path.parts[-3]) for path in paths]


@pytest.fixture(scope="session")
def pictures(in_order: list[Picture]) -> list[Picture]:
    """They in an order that is not that of paths, named with their classes."""
    order = np.random.default_rng(3).permutation(len(in_order)).tolist()
    return [in_order[id]._replace(name=f"{in_order[id].label}_{in_order[id].name}") for id in order]


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


def crc(content: bytes) -> bytes:
    """The masked CRC-32C of TFRecord files, bit by bit."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, bytes | int]) -> bytes:
    """A tf.train.Example message."""
    entries = b""
    for name, value in features.items():
        held = field(3, field(1, varint(value))) if isinstance(value, int) else field(1, field(1, value))
        entries += field(1, field(1, name.encode()) + field(2, held))
    return field(1, entries)


def write_tfrecord(path: Path, messages: Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    heads = ((struct.pack("<Q", len(message)), message) for message in messages)
    path.write_bytes(b"".join(head + crc(head) + message + crc(message) for head, message in heads))
    return path


def features(schema: dict[str, Any]) -> dict[bytes, bytes]:
    """Metadata of a schema as Hugging Face's writer puts them there."""
    return {b"huggingface": json.dumps({"info": {"features": schema}}).encode()}


CLASSES = ["class0", "class2", "class1"]  # not in the order of their names
DECLARED = {"img": {"_type": "Image"}, "kind": {"names": CLASSES, "_type": "ClassLabel"}}


def arrow_table(pictures: Sequence[Picture], metadata: dict[bytes, bytes] | None = None) -> "pyarrow.Table":
    """A table of the columns img {bytes, path} and kind, with the metadata of DECLARED."""
    images = [{"bytes": picture.content, "path": picture.name} for picture in pictures]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    labels = pyarrow.array([CLASSES.index(picture.label) for picture in pictures], pyarrow.int64())
    schema = pyarrow.schema([("img", kind), ("kind", pyarrow.int64())], metadata or features(DECLARED))
    return pyarrow.Table.from_arrays([pyarrow.array(images, kind), labels], schema=schema)


def write_arrow(path: Path, table: "pyarrow.Table", rows: int = 5, compression: str | None = None) -> Path:
    """A stream of record batches of so many rows, as Hugging Face's cache has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_stream(out, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def save_to_disk(root: Path, pictures: Sequence[Picture], **splits: str) -> Path:
    """The layout of DatasetDict.save_to_disk; splits="their name in `pictures`"."""
    for split, name in splits.items():
        write_arrow(root / split / "data-00000-of-00001.arrow", arrow_table(split_of(pictures, name)))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (root / split / "state.json").write_text(json.dumps(state))
        (root / split / "dataset_info.json").write_text(json.dumps({"features": DECLARED}))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastaug.data.packed.crc32c import masked_crc32c
from fastaug.data.packed.index import PackedIndex, PackedSet, load_packed
from fastaug.data.packed.records import Keys
from fastaug.errors import DataError

from .conftest import Picture, crc, example, field, split_of, varint, write_tfrecord


def tfrecord(place: Path, **keys: str) -> PackedIndex:
    return load_packed(PackedSet("tfrecord", str(place), Keys(**keys)), threads=1)


def refused(place: Path, **keys: str) -> str:
    with pytest.raises(DataError) as error:
        tfrecord(place, **keys)
    return str(error.value)


def imagenet(picture: Picture) -> bytes:
    """An example as ImageNet's writer makes it."""
    number = int(picture.label[-1]) + 1
    return example(
        {
            "image/height": 40,
            "image/class/label": number,
            "image/class/synset": f"n0{number}".encode(),
            "image/filename": picture.name.encode(),
            "image/encoded": picture.content,
        }
    )


def tfds(picture: Picture) -> bytes:
    return example({"image": picture.content, "label": int(picture.label[-1]), "file_name": picture.name.encode()})


@pytest.mark.parametrize("length", [0, 1, 8, 1000, 1003])
def test_crc(length: int) -> None:
    content = np.random.default_rng(0).integers(0, 256, length, dtype=np.uint8)
    assert struct.pack("<I", masked_crc32c(content)) == crc(content.tobytes())


def test_records_as_imagenet_has_them(tmp_path: Path, pictures: list[Picture]) -> None:
    train, val = split_of(pictures, "train"), split_of(pictures, "val")
    write_tfrecord(tmp_path / "train-00000-of-00002", map(imagenet, train[:7]))
    write_tfrecord(tmp_path / "train-00001-of-00002", map(imagenet, train[7:]))
    write_tfrecord(tmp_path / "validation-00000-of-00001", map(imagenet, val))
    index = tfrecord(tmp_path)
    assert [index.encoded(i).tobytes() for i in range(18)] == [picture.content for picture in (*train, *val)]
    assert index.classes == ("n01", "n02", "n03")
    assert index.paths[8] == f"train-00001-of-00002:1:{train[8].name}".encode()
    assert tfrecord(tmp_path, label="image/class/label").classes == ("1", "2", "3")
    (tmp_path / "train-00000-of-00002").unlink()
    assert "lacks 1 of 2 files: train-00000-of-00002" in refused(tmp_path)


def test_records_as_tfds_has_them(tmp_path: Path, pictures: list[Picture]) -> None:
    for split, name in (("train", "train"), ("test", "val")):
        write_tfrecord(tmp_path / f"pets-{split}.tfrecord-00000-of-00001", map(tfds, split_of(pictures, name)))
    (tmp_path / "label.labels.txt").write_text("zebra\ncat\nhorse\nnobody\n")
    splits = [{"name": "train", "shardLengths": ["12"]}, {"name": "test", "shardLengths": ["6"]}]
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "pets", "splits": splits}))
    index = tfrecord(tmp_path)
    assert index.classes == ("zebra", "cat", "horse", "nobody")  # ids in the order of paths: test, train
    assert index.labels.tolist() == [int(p.label[-1]) for s in ("val", "train") for p in split_of(pictures, s)]
    splits[0]["shardLengths"] = ["9", "4"]
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "pets", "splits": splits}))
    assert "train (12, not 13)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("names", "label", "said"),
    [
        (b"caf\xe9\nbar\n", 0, "label.labels.txt cannot be read ('utf-8' codec can't decode"),
        (b"cat\ndog\n", 2, "has label 2, and 2 classes have names"),
        (b"cat\ndog\n", b"9" * 5000, "has label 9999"),
    ],
)
def test_names_of_classes_that_cannot_be(
    tmp_path: Path, pictures: list[Picture], names: bytes, label: int | bytes, said: str
) -> None:
    write_tfrecord(tmp_path / "a.tfrecord", [example({"image": pictures[0].content, "label": label})])
    (tmp_path / "label.labels.txt").write_bytes(names)
    assert said in refused(tmp_path)


def test_integers_that_are_not_packed_and_fields_of_others(tmp_path: Path, pictures: list[Picture]) -> None:
    picture = pictures[0]
    entries = b""
    for number in (0, 1):
        label = field(3, varint(1 << 3) + varint(number))
        content = field(1, field(1, picture.content))
        extra = varint(9 << 3 | 5) + bytes(4) + varint(9 << 3 | 1) + bytes(8)
        pairs = [(b"label", label), (b"weight", field(2, field(1, bytes(8)))), (b"image", content)]
        entries += field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in pairs)) + extra
        write_tfrecord(
            tmp_path / f"{number}.tfrecord",
            [field(1, b"".join(field(1, field(1, name) + field(2, value)) for name, value in pairs)) + extra],
        )
    index = tfrecord(tmp_path)
    assert index.labels.tolist() == [0, 1]
    assert index.encoded(1).tobytes() == picture.content


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (flip(3), "record 0: the CRC of its length is broken"),
        (flip(400), "record 0: the CRC of its .* bytes is broken"),
        (lambda raw: raw[:-30], "record 1: .* bytes, of which .* are there: cut short"),
        (lambda raw: raw + b"1234", "record 2: the file ends in its head"),
        (lambda raw: raw[:0], "is empty"),
        (lambda raw: b"\x1f\x8b" + raw, "unpack it first, for it looks compressed"),
    ],
)
def test_broken_files_are_refused(
    tmp_path: Path, pictures: list[Picture], break_it: Callable[[bytes], bytes], said: str
) -> None:
    file = write_tfrecord(tmp_path / "a.tfrecord", map(tfds, pictures[:2]))
    file.write_bytes(break_it(file.read_bytes()))
    with pytest.raises(DataError, match=said):
        tfrecord(tmp_path)


def test_examples_of_something_else_are_refused(tmp_path: Path, pictures: list[Picture]) -> None:
    write_tfrecord(tmp_path / "1" / "a.tfrecord", [example({"text": b"hello", "label": 1})])
    assert "no image in image/encoded or image; it has label, text; name the one" in refused(tmp_path / "1")
    write_tfrecord(tmp_path / "2" / "a.tfrecord", [b"\xff\xff\xff"])
    assert "an integer without an end" in refused(tmp_path / "2")
    write_tfrecord(tmp_path / "3" / "a.tfrecord", [example({"image": pictures[0].content})] * 2)
    assert "no label in any of 2 images" in refused(tmp_path / "3")
    write_tfrecord(tmp_path / "4" / "a.tfrecord", [tfds(pictures[0]), example({"label": 1})])
    assert "record 1: not an example with an image in image" in refused(tmp_path / "4")

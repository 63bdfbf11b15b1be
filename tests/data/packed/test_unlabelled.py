"""Packed sets for prediction: every image of them, whatever their labels are."""

from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fastaug.data.packed.unlabelled import load_unlabelled, packed_set
from fastaug.errors import DataError
from tests.data.packed.conftest import Picture, example, write_tar, write_tfrecord


def parquet_of(label: object) -> Callable[[Path, bytes], object]:
    def write(root: Path, image: bytes) -> None:
        pyarrow.parquet.write_table(pyarrow.table({"image": [image], "label": [label]}), root / "a.parquet")

    return write


def tar_of(kind: str, label: bytes) -> Callable[[Path, bytes], object]:
    return lambda root, image: write_tar(root / "a.tar", [("a.jpg", image), (f"a.{kind}", label)])


def numbered_above_names(root: Path, image: bytes) -> None:
    write_tfrecord(root / "a.tfrecord", [example({"image": image, "label": 5})])
    (root / "label.labels.txt").write_text("cat\ndog\n")


def imagenet_without_devkit(root: Path, image: bytes) -> None:
    write_tar(root / "ILSVRC2012_img_val.tar", [("ILSVRC2012_val_00000001.JPEG", image)])
    (root / "train" / "n01440764").mkdir(parents=True)


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("parquet", parquet_of(0.5)),
        ("parquet", parquet_of([1, 2])),
        ("wds", tar_of("json", b'{"label": [1, 2]}')),
        ("wds", tar_of("cls", b"\xff")),
        ("tfrecord", numbered_above_names),
        ("imagenet", imagenet_without_devkit),
    ],
)
def test_labels_that_cannot_be_read_do_not_matter(
    pictures: list[Picture], tmp_path: Path, kind: str, write: Callable[[Path, bytes], object]
) -> None:
    write(tmp_path, pictures[0].content)
    packed = packed_set(f"{kind}:{tmp_path}")
    assert packed is not None
    index = load_unlabelled(packed, ("x", "y"), exif="ignore", threads=1)
    assert [index.encoded(id).tobytes() for id in range(len(index))] == [pictures[0].content]
    assert index.labels.tolist() == [0]


def test_imagenet_without_a_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    packed = packed_set(f"imagenet:{tmp_path}")
    assert packed is not None
    with pytest.raises(DataError, match=r"^imagenet:/.* lacks train/ or ILSVRC2012_img_train.tar; put it there"):
        load_unlabelled(packed, ("x", "y"), exif="ignore", threads=1)


def test_the_remedy_is_an_option_of_the_command(pictures: list[Picture], tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.picture", pictures[0].content)])
    packed = packed_set(f"wds:{tmp_path}")
    assert packed is not None
    with pytest.raises(DataError, match=r"^/.*no member of an image.*name its ending in --input-key"):
        load_unlabelled(packed, ("x", "y"), exif="ignore", threads=1)

"""Files of labels and lists of images, with the names that file systems allow and lines do not."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastaug.data import splits as splits_module
from fastaug.data.image_headers import Status
from fastaug.data.index import Folder, Index
from fastaug.data.label_files import label_lines, read_class_numbers, with_labels
from fastaug.data.path_table import PathTable
from fastaug.data.splits import Splits, make_splits
from fastaug.errors import DataError

CLASSES = ("#1", "cat", "cat ", "\udce9")  # names of folders; the last one is Latin-1
PATHS = (b"#1/a.jpg", b"cat/ b.jpg", b"cat/c\x0bd.jpg", b"cat/e\nf.jpg", b"cat/g\th.jpg", b"cat /i.jpg", b"\xe9/j.jpg")


@pytest.fixture
def index() -> Index:
    labels, sizes = np.array([0, 1, 1, 1, 1, 2, 3]), np.full(len(PATHS), 9, np.int32)
    zeros = np.zeros(len(PATHS), np.uint8)
    columns = (labels, sizes, sizes, zeros + Status.OK, zeros + Folder.ALL)
    return Index(Path("/data"), CLASSES, PathTable.of(PATHS), *columns, {})


def relabelled(index: Index, file: Path, text: bytes) -> list[int]:
    file.write_bytes(text)
    none = np.zeros(0, np.int64)
    splits = Splits(train=np.arange(len(PATHS) - 1), meta=none, select=none, test=np.array([len(PATHS) - 1]))
    return with_labels(index, splits, file).labels.tolist()


def test_labels_of_odd_names(index: Index, tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf# id<TAB>class\n#1\tis a remark\n\n#1/a.jpg\tcat\r\ncat/ b.jpg\tcat \n"
    text += b"cat/c\x0bd.jpg\t#1\n3\t#1  \ncat/g\th.jpg\t\xe9\ncat /i.jpg\tcat"
    assert relabelled(index, tmp_path / "l.tsv", text) == [1, 2, 0, 0, 3, 1, 3]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"#1/b.jpg\tcat", "line 1: '#1/b.jpg\\tcat' names no image of these data by its id, or its path relative to"),
        (
            b"cat/c\x0bd.jpg\tdog",
            "line 1: 'cat/c\\x0bd.jpg\\tdog' names the class dog, and there is none of that name; the 4 classes are "
            "#1, cat, 'cat ', '\\udce9'; correct the line, or name the file of labels of these images",
        ),
        (b"6\tcat", "is not about an image of the training split"),
        (b"0\tcat\n#1/a.jpg\tcat", "line 2: '#1/a.jpg\\tcat' names an image twice"),
        (b"0\tdog \r", "names the class dog, and"),
        (b"cat/ b.jpg", "must be an id or path, a tab and the name of a class; correct or remove the line"),
        (b"cat", "'cat' must be an id or path, a tab"),
        (b"0\t", "'0\\t' must be an id or path, a tab"),
    ],
)
def test_wrong_lines_are_named(index: Index, tmp_path: Path, line: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        relabelled(index, tmp_path / "l.tsv", line)
    assert said in str(caught.value)


def test_lines_keep_their_numbers_from_stretch_to_stretch(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits_module, "STRETCH", 2)
    text = b"# a remark\n0\tcat\n\n3\t#1\ncat/g\th.jpg\t#1"
    assert relabelled(index, tmp_path / "l.tsv", text) == [1, 1, 1, 0, 0, 2, 3]
    with pytest.raises(DataError, match=r"line 7: '#1/a\.jpg\\tcat' names an image twice"):
        relabelled(index, tmp_path / "l.tsv", text + b"\n1\tcat\n#1/a.jpg\tcat")


def test_a_pipe_is_not_waited_for(index: Index, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "l.tsv")
    with pytest.raises(DataError, match=r"l\.tsv cannot be read .*Not a regular file"):
        with_labels(index, make_splits(index, seed=0, needs_test=False), tmp_path / "l.tsv")


def test_written_labels_are_read_back(index: Index, tmp_path: Path) -> None:
    text = label_lines(np.array([0, 3, 5]), ["\udce9", "cat ", "#1"])
    assert relabelled(index, tmp_path / "l.tsv", text) == [3, 1, 1, 2, 1, 0, 3]
    with pytest.raises(DataError, match=r"class 'a\\nb': a label file cannot hold line feeds"):
        label_lines(np.array([0]), ["a\nb"])


def test_lists_of_odd_names(index: Index, tmp_path: Path) -> None:
    train = b"# all but two\r\n#1/a.jpg\r\ncat/ b.jpg\ncat/c\x0bd.jpg\n 3 \ncat /i.jpg\n"
    (tmp_path / "train.txt").write_bytes(train)
    (tmp_path / "test.txt").write_bytes(b"cat/g\th.jpg\n\xe9/j.jpg")
    splits = make_splits(index, seed=0, files=tmp_path)
    assert (splits.train.tolist(), splits.test.tolist()) == ([0, 1, 2, 3, 5], [4, 6])
    (tmp_path / "test.txt").write_bytes(b"cat/e\nf.jpg")
    with pytest.raises(DataError, match=r"test\.txt, line 1: 'cat/e' is neither an id below 7 nor a path"):
        make_splits(index, seed=0, files=tmp_path)
    assert os.fsdecode(PATHS[6]) == "\udce9/j.jpg"


def numbers(folder: Path, text: bytes) -> list[float]:
    (folder / "w.tsv").write_bytes(text)
    return read_class_numbers(folder / "w.tsv", CLASSES, "augment.class_weight").tolist()


def test_numbers_of_classes(tmp_path: Path) -> None:
    text = b"# class<TAB>weight\n#1\t0.5\r\n\ncat \t2\n\xe9\t0\ncat\t1e3"
    assert numbers(tmp_path, text) == [0.5, 1000, 2, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"dog\t1", "w.tsv, line 1: 'dog\\t1' must be a class, a tab and a number >= 0"),
        (b"cat\t-1", "line 1: 'cat\\t-1' must be"),
        (b"cat\tinf", "line 1: 'cat\\tinf' must be"),
        (b"cat\tnan", "line 1: 'cat\\tnan' must be"),
        (b"cat\t1\ncat\t2", "line 2: 'cat\\t2' names a class twice"),
        (b"cat\t1\n#1\t2", "has no line for 2 classes: 'cat ', '\\udce9'; add them"),
    ],
)
def test_numbers_that_do_not_fit_the_classes_are_named(tmp_path: Path, text: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        numbers(tmp_path, text)
    assert str(caught.value).startswith("augment.class_weight: ")
    assert said in str(caught.value)

"""Tables of images with any number of classes: both forms say the same, and wrong cells are told by line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastaug.data.build import DataParts
from fastaug.data.index import Index, load_index
from fastaug.data.listing import Listing
from fastaug.data.splits import make_splits
from fastaug.errors import DataError

ROWS = ["b.png,sky | tree,train", "a.png,tree,train", "c.png,,train", "d.png,sky,val", "e.png,sea|sky,train"]
COLUMNS = ["b.png,0,1,1,train", "a.png,0,0,1,train", "c.png,0,0,0,train", "d.png,0,1,0,val", "e.png,1,1,0,train"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcde":
        Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    return tmp_path


def listed(root: Path, rows: list[str], kind: str = "separated", head: str = "path,label,split") -> Index:
    (root / "t.csv").write_text("\n".join([head, *rows]) + "\n")
    return load_index(root, listing=Listing(root / "t.csv", multi_label=kind), threads=1)


def columns(root: Path, rows: list[str]) -> Index:
    return listed(root, rows, "columns", "file,sea,sky,tree,split")


def test_both_forms_give_the_classes_of_every_image_in_the_order_of_paths(root: Path) -> None:
    for _ in ("made", "from the cache"):
        for found in (listed(root, ROWS), columns(root, COLUMNS)):
            assert found.classes == ("sea", "sky", "tree")
            assert found.multi_hot is not None
            assert found.multi_hot.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]]
            assert found.labels.tolist() == [2, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("d.png,skyy,val", "a class that no training row has: line 5 (skyy)"),
        ("d.png,sky|sky,val", "a label that stands twice in the cell: line 5 (sky, sky)"),
    ],
)
def test_wrong_labels_are_told_by_line(root: Path, row: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        listed(root, [*ROWS[:3], row, ROWS[4]])
    assert message in str(caught.value)


def test_wrong_columns_are_told(root: Path) -> None:
    with pytest.raises(DataError, match=r"neither 0 nor 1 in .*: line 2 \(sky: -1\), line 3 \(sea: empty\)"):
        columns(root, ["b.png,0,-1,1,train", "a.png,,0,1,train", *COLUMNS[2:]])
    with pytest.raises(DataError, match="columns of classes need names of their own, found sky, sky, tree"):
        listed(root, COLUMNS, "columns", "file,sky,sky,tree,split")
    named = listed(root, ["b.png,train,1,0,1", "a.png,train,0,1,1"], "columns", "path,split,cat,image,set")
    assert named.classes == ("cat", "image", "set")  # other names of path and split are classes beside these
    with pytest.raises(DataError, match="classes: tree; at least two are needed"):
        listed(root, ["a.png,1,train"], "columns", "file,tree,split")
    with pytest.raises(DataError, match="has no training row"):
        columns(root, [COLUMNS[3]])


def test_what_trains_is_known_by_its_classes_and_matched_by_their_names(root: Path) -> None:
    def parts(index: Index) -> DataParts:
        return DataParts(index.classes, make_splits(index, seed=0), index)

    first = parts(listed(root, ROWS))
    assert first.fingerprint() == parts(columns(root, COLUMNS)).fingerprint()
    changed = parts(columns(root, [COLUMNS[0].replace(",0,1,1,", ",0,1,0,"), *COLUMNS[1:]]))
    assert changed.index is not None
    assert first.index is not None
    assert np.array_equal(changed.index.labels, first.index.labels)
    assert first.fingerprint() != changed.fingerprint()
    other = first.for_network(["tree", "moon", "sea", "sky"]).index
    assert other is not None
    assert other.multi_hot is not None
    assert other.multi_hot.tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]
    assert first.unseen_classes() == {"test": ["sea", "tree"]}

"""Tables and class maps: the same index as folders give, kept in step with the files, and wrong rows told by line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastaug.data.index import Folder, Index, load_index
from fastaug.data.listing import Listing
from fastaug.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train and val folders of cat, dog and cow, two images of 4 x 3 pixels each."""
    for split in ("train", "val"):
        for name in ("cat", "cow", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (4, 3), (number, 0, 0)).save(folder / f"{number}.png")
    return tmp_path / "set"


def lines_of(root: Path) -> list[str]:
    """The rows of a table that says what the folders say."""
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    return [f"{path},{path.parts[1]},{path.parts[0]}" for path in paths]


def table(root: Path, rows: list[str], head: str = "path,label,split") -> Path:
    file = root / "table.csv"
    file.write_text("\n".join([head, *rows]) + "\n")
    return file


def listed(root: Path, rows: list[str], head: str = "path,label,split", class_map: Path | None = None) -> Index:
    return load_index(root, listing=Listing(table(root, rows, head), class_map=class_map), threads=1)


def refused(root: Path, rows: list[str], **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        listed(root, rows, **keys)  # type: ignore[arg-type]
    return str(caught.value)


def columns(index: Index) -> dict[str, object]:
    arrays = {name: getattr(index, name).tolist() for name in ("labels", "heights", "widths", "status", "folders")}
    return {"paths": list(index.paths), "classes": index.classes, **arrays}


def test_a_table_in_any_order_gives_the_index_of_the_folders(root: Path) -> None:
    expected = columns(load_index(root, threads=1))
    rows = lines_of(root)[::-1]
    rows[0] = f"./{root / rows[0]}".removeprefix("./")  # an absolute path
    rows[1] = "train/../" + rows[1]
    for _ in ("made", "from the cache"):
        assert columns(listed(root, rows)) == expected


def test_without_splits_all_rows_are_one_set(root: Path) -> None:
    found = listed(root, [row.rpartition(",")[0] for row in lines_of(root)], "file_name,class")
    assert set(found.folders.tolist()) == {Folder.ALL}


def test_val_is_for_selection_where_a_test_split_is_there(root: Path) -> None:
    rows = [row.replace("1.png,cat,val", "1.png,cat,Test") for row in lines_of(root)]
    found = listed(root, rows)
    role = dict(zip(found.paths, found.folders.tolist(), strict=True))
    assert (role[b"val/cat/0.png"], role[b"val/cat/1.png"]) == (Folder.SELECT, Folder.TEST)


def test_numbers_are_classes_in_their_order_and_text_by_name(root: Path) -> None:
    number = {"cat": "10", "cow": "9", "dog": "-1"}
    rows = [f"{path},{number[name]},{split}" for path, name, split in (row.split(",") for row in lines_of(root))]
    assert listed(root, rows).classes == ("-1", "9", "10")
    assert listed(root, [row.replace(",-1,", ",x,") for row in rows]).classes == ("10", "9", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train/cat/0.png,cat,train", "train/cat/9.png,cat,train"), "a file that is not there"),
        (("train/cat/0.png,cat,train", r"train\cat\0.png,cat,train"), "write / in place of \\"),
        (("train/cat/0.png,cat,train", ",cat,train"), "a row with no path: line 2;"),
        (("train/cat/0.png,cat,train", "train/cat/0.png,,train"), "a row with no label: line 2;"),
        (("train/cat/0.png,cat,train", "train/cat/0.png,cat,"), "an unknown split: line 2 (empty); write train, val"),
        (("train/cat/0.png,cat,train", "train/cat/0.png,cat,fold1"), "an unknown split: line 2 (fold1)"),
        (("val/dog/0.png,dog,val", "val/dog/0.png,cart,val"), "a class that no training row has: line 12 (cart)"),
        (("val/dog/0.png,dog,val", "val/dog/./1.png,dog,val"), "stands twice: line 13 (val/dog/1.png, as line 12)"),
    ],
)
def test_wrong_rows_are_told_by_line(root: Path, change: tuple[str, str], message: str) -> None:
    rows = [row.replace(*change) for row in lines_of(root)]
    assert message in refused(root, rows)


def test_one_class_and_no_training_row_are_refused(root: Path) -> None:
    assert "classes of the training rows: cat; at least two" in refused(root, lines_of(root)[:2])
    only = [row for row in lines_of(root) if row.endswith("val")]
    assert "classes of the training rows: none" in refused(root, only)


def test_a_changed_table_is_listed_anew_and_a_lost_file_noticed_with_the_cache(root: Path) -> None:
    rows = lines_of(root)
    before = listed(root, rows)
    after = listed(root, rows[1:])
    assert len(after) == len(before) - 1
    (root / "val" / "dog" / "1.png").unlink()
    assert "a file that is not there or cannot be reached: line 12 (val/dog/1.png)" in refused(root, rows[1:])


def test_tables_of_one_root_have_indices_of_their_own(root: Path) -> None:
    rows = lines_of(root)
    first = listed(root, rows)
    other = root / "other.csv"
    shutil.copy(table(root, rows[1:]), other)
    assert len(load_index(root, listing=Listing(other), threads=1)) == len(first) - 1
    assert len(listed(root, rows)) == len(load_index(root, threads=1)) == len(first)


# --- class maps


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_a_class_map_joins_renames_and_leaves_out(root: Path, kind: str, recwarn: pytest.WarningsRecorder) -> None:
    file = root.parent / "map.csv"
    file.write_text("name,class\ncat,pet\ndog,pet\n")
    own = Listing(table(root, lines_of(root)) if kind == "table" else None, class_map=file)
    joined = load_index(root, listing=own, threads=1)
    assert joined.classes == ("cow", "pet")
    assert np.bincount(joined.labels).tolist() == [4, 8]
    file.write_text("name,class\ncow,\n")
    for _ in ("made", "from the cache"):
        with pytest.warns(UserWarning, match=r"data\.class_map leaves out 4 images of .*cow"):
            without = load_index(root, listing=own, threads=1)
        assert (without.classes, len(without)) == (("cat", "dog"), 8)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\ncat,pet\nkat,pet\n", "names that no folder or label has: line 3 (kat)"),
        ("name,class\ncat,pet\ncat,cow\n", "a name that stands twice: line 3 (cat, as line 2)"),
        ("name,class\n,pet\n", "a row with no name: line 2"),
        ("folder,class\ncat,pet\n", "has no column name, but folder, class"),
    ],
)
def test_a_wrong_map_is_told_by_line(root: Path, text: str, message: str) -> None:
    file = root.parent / "map.csv"
    file.write_text(text)
    for own in (Listing(class_map=file), Listing(table(root, lines_of(root)), class_map=file)):
        with pytest.raises(DataError, match=r"data\.class_map: .*map\.csv") as caught:
            load_index(root, listing=own, threads=1)
        assert message in str(caught.value)


# --- nested folders


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """animals/{cat,big/lion}, things/{car}, one image in each, and one in things itself."""
    for folder in ("animals/cat", "animals/big/lion", "things/car", "things"):
        (tmp_path / "nested" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "nested" / folder / "0.png")
    return tmp_path / "nested"


def test_classes_are_the_top_folders_or_those_that_hold_images(nested: Path) -> None:
    top, leaf = (load_index(nested, listing=Listing(class_level=level), threads=1) for level in ("top", "leaf"))
    assert top.classes == load_index(nested, threads=1).classes == ("animals", "things")
    assert leaf.classes == ("car", "cat", "lion", "things")
    assert (
        list(leaf.paths)
        == list(top.paths)
        == [
            *(b"animals/big/lion/0.png", b"animals/cat/0.png", b"things/0.png", b"things/car/0.png"),
        ]
    )
    assert leaf.labels.tolist() == [2, 1, 3, 0]


def test_leaves_of_one_name_are_refused_unless_a_map_names_them(nested: Path) -> None:
    (nested / "things" / "cat").mkdir()
    shutil.copy(nested / "things" / "0.png", nested / "things" / "cat")
    with pytest.raises(DataError, match="animals/cat and things/cat would both be class cat; rename one, or name them"):
        load_index(nested, listing=Listing(class_level="leaf"), threads=1)
    file = nested.parent / "map.csv"
    file.write_text("name,class\nthings/cat,toy\n")
    found = load_index(nested, listing=Listing(class_level="leaf", class_map=file), threads=1)
    assert found.classes == ("car", "cat", "lion", "things", "toy")
    file.write_text("name,class\ncat,cat\n")  # of both
    found = load_index(nested, listing=Listing(class_level="leaf", class_map=file), threads=1)
    assert np.bincount(found.labels).tolist() == [1, 2, 1, 1]


def test_a_leaf_of_unread_images_is_told(nested: Path) -> None:
    (nested / "animals" / "fish").mkdir()
    (nested / "animals" / "fish" / "0.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image in class folder animals/fish \(files that are not read: 1 \.heic\)"):
        load_index(nested, listing=Listing(class_level="leaf"), threads=1)

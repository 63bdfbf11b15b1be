import json
from pathlib import Path

import pyarrow
import pytest

from fastaug.data.index import Folder
from fastaug.data.packed.index import PackedIndex, PackedSet, load_packed
from fastaug.data.packed.records import Keys
from fastaug.errors import DataError

from .conftest import CLASSES, Picture, arrow_table, features, save_to_disk, split_of, write_arrow


def hfds(place: Path, **keys: str) -> PackedIndex:
    return load_packed(PackedSet("hfds", str(place), Keys(**keys)), threads=1)


def refused(place: Path, **keys: str) -> str:
    with pytest.raises(DataError) as error:
        hfds(place, **keys)
    return str(error.value)


def test_a_set_saved_to_disk(tmp_path: Path, pictures: list[Picture]) -> None:
    index = hfds(save_to_disk(tmp_path, pictures, train="train", validation="val"))
    expected = [*split_of(pictures, "train"), *split_of(pictures, "val")]
    assert [index.encoded(i).tobytes() for i in range(len(index))] == [picture.content for picture in expected]
    assert index.classes == tuple(CLASSES)
    assert [index.classes[label] for label in index.labels] == [picture.label for picture in expected]
    assert index.folders.tolist() == [Folder.TRAIN] * 12 + [Folder.TEST] * 6
    assert index.paths[7] == b"train/data-00000-of-00001.arrow:7"


def test_one_split_saved_to_disk_is_one_set(tmp_path: Path, pictures: list[Picture]) -> None:
    index = hfds(save_to_disk(tmp_path, pictures, train="train") / "train")
    assert index.folders.tolist() == [Folder.ALL] * 12


def test_files_of_the_cache_and_the_file_format(tmp_path: Path, pictures: list[Picture]) -> None:
    write_arrow(tmp_path / "pets-train.arrow", arrow_table(split_of(pictures, "train")))
    write_arrow(tmp_path / "cache-0123.arrow", arrow_table(pictures))  # what map() left
    table = arrow_table(split_of(pictures, "val"))
    with pyarrow.ipc.new_file(str(tmp_path / "pets-test.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    index = hfds(tmp_path)
    expected = [*split_of(pictures, "val"), *split_of(pictures, "train")]  # in the order of paths
    assert [index.encoded(i).tobytes() for i in range(len(index))] == [picture.content for picture in expected]


def test_images_by_path_and_missing_ones(tmp_path: Path, pictures: list[Picture]) -> None:
    (tmp_path / "a.jpg").write_bytes(pictures[0].content)
    images = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}]
    images += [{"bytes": pictures[1].content, "path": "c.jpg"}, None]
    table = pyarrow.table({"image": images, "label": ["x", "y", "x", "y", "x"]})
    index = hfds(write_arrow(tmp_path / "set.arrow", table).parent)
    assert index.encoded(0).tobytes() == pictures[0].content
    assert index.encoded(3).tobytes() == pictures[1].content
    assert index.reasons.keys() == {1, 2, 4}
    assert "No such file" in index.reasons[1]
    assert index.classes == ("x", "y")


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_plain_bytes(tmp_path: Path, pictures: list[Picture], kind: pyarrow.DataType) -> None:
    content = pyarrow.array([picture.content for picture in pictures[:6]], kind)
    table = pyarrow.table({"data": content, "target": [2, 10, 2, 10, 10, 2]})
    index = hfds(write_arrow(tmp_path / "set.arrow", table, rows=4).parent)
    assert [index.encoded(i).tobytes() for i in range(6)] == [picture.content for picture in pictures[:6]]
    assert index.classes == ("2", "10")


def test_columns_that_are_not_clear_are_named(tmp_path: Path, pictures: list[Picture]) -> None:
    table = arrow_table(pictures)
    two = table.append_column("fine", table["kind"])
    schema = {"img": {"_type": "Image"}} | {n: {"names": CLASSES, "_type": "ClassLabel"} for n in ("kind", "fine")}
    two = two.replace_schema_metadata(features(schema))
    root = write_arrow(tmp_path / "1" / "a.arrow", two).parent
    assert "more than one column of labels: fine, kind; name the one" in refused(root)
    assert hfds(root, label="fine").classes == tuple(CLASSES)
    assert "no column nothing; it has fine, img, kind" in refused(root, label="nothing")
    assert "data.input_key" in refused(root, image="nothing")
    root = write_arrow(tmp_path / "2" / "a.arrow", pyarrow.table({"text": ["a"], "label": [1]})).parent
    assert "no column of images; it has label (int64), text (string); name the one" in refused(root)


def test_a_split_without_labels_is_left_out(tmp_path: Path, pictures: list[Picture]) -> None:
    root = save_to_disk(tmp_path, pictures, train="train", validation="val", test="val")
    table = arrow_table(split_of(pictures, "val"))
    table = table.set_column(1, table.schema.field("kind"), pyarrow.array([-1] * 6, pyarrow.int64()))
    write_arrow(root / "test" / "data-00000-of-00001.arrow", table)
    with pytest.warns(UserWarning, match="test is left out"):
        assert len(hfds(root)) == 18


def test_half_of_a_set_is_refused(tmp_path: Path, pictures: list[Picture]) -> None:
    root = save_to_disk(tmp_path, pictures, train="train", validation="val")
    file = root / "train" / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for end in (len(whole) // 2, len(whole) - 8, 30, 0):
        file.write_bytes(whole[:end])
        assert "cut short" in refused(root)
    state = {"_data_files": [{"filename": "gone.arrow"}]}
    (root / "train" / "state.json").write_text(json.dumps(state))
    assert "files that are not there: gone.arrow" in refused(root)
    (root / "train" / "state.json").write_text("{")
    assert "state.json cannot be read" in refused(root)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dataset_dict.json", {"splits": None}, "splits is no list, but None"),
        ("dataset_dict.json", {"splits": 3}, "splits is no list, but 3"),
        ("dataset_dict.json", {"splits": ["train", {}]}, "cannot be read"),
        ("train/state.json", {"_data_files": True}, "_data_files is no list, but True"),
        ("train/state.json", {"_data_files": [{}]}, "an entry of _data_files names no file"),
        ("train/state.json", {"_data_files": ["x.arrow"]}, "an entry of _data_files names no file"),
    ],
)
def test_lists_of_files_that_are_none(
    tmp_path: Path, pictures: list[Picture], name: str, content: object, said: str
) -> None:
    root = save_to_disk(tmp_path, pictures, train="train")
    (root / name).write_text(json.dumps(content))
    assert said in refused(root)


def test_what_cannot_be_read_in_place_is_refused(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_arrow(tmp_path / "a.arrow", arrow_table(pictures), compression="zstd").parent
    assert "compressed inside" in refused(root)
    root = save_to_disk(tmp_path / "b", pictures, train="train")
    state = json.loads((root / "train" / "state.json").read_text()) | {"_indices_data_files": [{"filename": "x"}]}
    (root / "train" / "state.json").write_text(json.dumps(state))
    assert "flatten_indices" in refused(root)
    (tmp_path / "c").mkdir()
    table = arrow_table(pictures)
    table = table.set_column(1, table.schema.field("kind"), pyarrow.array([7] * 18, pyarrow.int64()))
    write_arrow(tmp_path / "c" / "a.arrow", table)
    assert "row 0 has label 7, and 3 classes have names" in refused(tmp_path / "c")

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastaug.data.index import Folder
from fastaug.data.packed.index import PackedIndex, PackedSet, load_packed
from fastaug.data.packed.records import Keys
from fastaug.errors import DataError

from .conftest import Picture, sample, split_of, write_tar, write_wds


def wds(place: Path | str, **keys: str) -> PackedIndex:
    return load_packed(PackedSet("wds", str(place), Keys(**keys)), threads=1)


def refused(place: Path | str, **keys: str) -> str:
    with pytest.raises(DataError) as error:
        wds(place, **keys)
    return str(error.value)


def test_samples_in_the_order_of_tars_with_their_bytes(tmp_path: Path, pictures: list[Picture]) -> None:
    index = wds(write_wds(tmp_path, pictures))
    train, val = split_of(pictures, "train"), split_of(pictures, "val")
    expected = [*train[::2], *train[1::2], *val[::2], *val[1::2]]
    assert [index.encoded(i).tobytes() for i in range(len(index))] == [picture.content for picture in expected]
    assert [f"class{index.classes[label]}" for label in index.labels] == [picture.label for picture in expected]
    assert index.folders.tolist() == [Folder.TRAIN] * 12 + [Folder.TEST] * 6
    assert index.paths[0] == b"train-000.tar/000000." + train[0].name.rpartition(".")[2].encode()
    assert index.heights.min() > 0


@pytest.mark.parametrize("key", [None, "label", "name"])
def test_labels_of_json(tmp_path: Path, pictures: list[Picture], key: str | None) -> None:
    index = wds(write_wds(tmp_path, pictures, kind="json"), **({"label": key} if key else {}))
    assert index.classes == (("class0", "class1", "class2") if key == "name" else ("0", "1", "2"))


def test_a_pattern_names_tars_and_folders_name_splits(tmp_path: Path, pictures: list[Picture]) -> None:
    for split in ("train", "val"):
        own = split_of(pictures, split)
        members = [m for row, one in enumerate(own) for m in sample(str(row), one, int(one.label[-1]))]
        write_tar(tmp_path / split / "00.tar", members)
        write_tar(tmp_path / split / "01.tar", [(f"a{name}", content) for name, content in members])
    assert len(wds(tmp_path)) == 36
    assert len(wds(f"{tmp_path}/{{train,val}}/{{00..00}}.tar")) == 18
    assert len(wds(f"{tmp_path}/train/{{00..01}}.tar::{tmp_path}/val/00.tar")) == 30
    assert "1 of 3 files are not there: 02.tar" in refused(f"{tmp_path}/train/{{00..02}}.tar")


def test_the_cache_is_used_until_a_tar_changes(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path, pictures)
    first = wds(root)
    again = wds(root)
    assert again.paths.blob == first.paths.blob
    assert np.array_equal(again.offsets, first.offsets)
    write_tar(root / "val-001.tar", sample("new", split_of(pictures, "val")[0], 1))
    assert len(wds(root)) == 16


def test_a_damaged_image_is_a_damaged_row(tmp_path: Path, pictures: list[Picture]) -> None:
    own = split_of(pictures, "train")
    own[3] = own[3]._replace(content=own[3].content[:300])
    own[5] = own[5]._replace(content=b"")
    index = wds(write_wds(tmp_path, own, tars=1))
    assert list(index.reasons) == [3, 5]
    assert index.reasons[5] == "empty file"


@pytest.mark.parametrize("left", [0.3, 0.7, 0.97])
def test_a_tar_that_is_cut_short_is_refused(tmp_path: Path, pictures: list[Picture], left: float) -> None:
    root = write_wds(tmp_path, pictures, tars=1)
    content = (root / "train-000.tar").read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512  # at 0.97 between two members
    (root / "train-000.tar").write_bytes(content[: int(end * left)] if left < 0.9 else content[: end + 512])
    text = refused(root)
    assert "train-000.tar" in text
    assert "download or copy it again" in text


def test_what_is_wrong_with_tars_is_said(tmp_path: Path, pictures: list[Picture]) -> None:
    one, other = split_of(pictures, "train")[:2]
    good = [*sample("a", one, 0), *sample("b", other, 1)]
    write_tar(tmp_path / "1" / "x.tar", [member for member in good if not member[0].endswith("cls")])
    assert "no label in any of 2 images; looked for .cls" in refused(tmp_path / "1")
    write_tar(tmp_path / "2" / "x.tar", [*good, ("c.jpg", one.content)])
    assert "without a label" in refused(tmp_path / "2")
    assert "x.tar/c.jpg" in refused(tmp_path / "2")
    write_tar(tmp_path / "3" / "x.tar", [*good, ("c.cls", b"1")])
    assert "samples with no member of an image (.jpg, .png, ...): c" in refused(tmp_path / "3")
    write_tar(tmp_path / "4" / "x.tar", [*good, *good])
    assert "twice" in refused(tmp_path / "4")
    write_tar(tmp_path / "5" / "x.tar", good)
    (tmp_path / "5" / "x.tar").write_bytes((tmp_path / "5" / "x.tar").read_bytes() * 2)
    assert "another archive" in refused(tmp_path / "5")
    write_tar(tmp_path / "6" / "x.tar", good)
    shutil.copy(tmp_path / "6" / "x.tar", tmp_path / "6" / "y.tar.part")
    assert "download that did not end" in refused(tmp_path / "6")
    (tmp_path / "7").mkdir()
    assert "no file of this format" in refused(tmp_path / "7")
    assert "does not exist" in refused(tmp_path / "8")


def test_the_list_beside_says_how_many(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path, pictures, tars=1)
    split = {"name": "train", "filenames": ["train-000.tar"], "shard_lengths": [12], "num_samples": 12}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    assert len(wds(root)) == 18
    split["shard_lengths"] = [13]
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    assert "train-000.tar (12, not 13)" in refused(root)


def test_numbered_files_must_all_be_there(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path, pictures, tars=1)
    (root / "train-000.tar").rename(root / "train-00001-of-00003.tar")
    assert "lacks 2 of 3 files: train-00000-of-00003.tar, train-00002-of-00003.tar" in refused(root)


def test_a_number_of_files_that_no_memory_holds(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path, pictures, tars=1)
    (root / "train-000.tar").rename(root / f"train-1-of-{10**30}.tar")
    said = refused(root)
    assert f"lacks {10**30 - 1} of {10**30} files: train-{'0' * 31}-of-1000" in said
    assert f".tar and {10**30 - 11} more; download the rest" in said


def test_a_label_of_two_dashes_is_text(tmp_path: Path, pictures: list[Picture]) -> None:
    members = [
        (f"{label}.{end}", content)
        for label in ("--5", "a")
        for end, content in (("png", pictures[0].content), ("cls", label.encode()))
    ]
    assert wds(write_tar(tmp_path / "a.tar", members).parent).classes == ("--5", "a")


def test_a_split_without_labels_is_left_out_and_said(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path, pictures, tars=1)
    write_tar(root / "test-000.tar", [("x.jpg", pictures[0].content)])
    for _ in range(2):  # from the cache too
        with pytest.warns(UserWarning, match="test is left out, for its 1 images have no labels"):
            index = wds(root)
        assert np.bincount(index.folders).tolist() == [0, 12, 0, 0, 6]  # val is tested on


def test_a_class_map_renames_and_leaves_out(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write_wds(tmp_path / "set", pictures)
    (tmp_path / "map.csv").write_text("name,class\n0,cat\n2,\n")
    for _ in range(2):
        with pytest.warns(UserWarning, match="data.class_map leaves out 6 images of 2"):
            index = load_packed(PackedSet("wds", str(root)), threads=1, class_map=tmp_path / "map.csv")
        assert index.classes == ("1", "cat")
        assert len(index) == 12

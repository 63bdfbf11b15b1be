"""Which folders are splits and which are classes, what is said of those that are neither, and how names are shown."""

import os
from pathlib import Path

import pytest
from PIL import Image

from fastaug.data.class_map import ClassMap
from fastaug.data.class_names import outputs_of, shown, some
from fastaug.data.folder_listing import images_in_folders
from fastaug.data.folders import Folder, Walk, layout_of
from fastaug.data.index import load_index
from fastaug.errors import DataError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name, "PNG")
    return root


def splits(root: Path, *names: str) -> Path:
    for name in names:
        put(root, f"{name}/cat/1.png", f"{name}/dog/1.png")
    return root


def rows(root: Path) -> list[tuple[bytes, int, int]]:
    walk = Walk(os.fsencode(root))
    found = images_in_folders(walk, "top", ClassMap())[1]
    return list(zip(found.paths, found.labels.tolist(), found.folders.tolist(), strict=True))


def refused(root: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        rows(root)
    for part in parts:
        assert part in str(caught.value)


TRAIN_NAMES = ["train", "Train", "TRAIN", "training", "Training_Set", "train2017", "train-images"]
OTHER_NAMES = [
    *((name, Folder.TEST) for name in ("dev", "Val", "validation", "VALID", "val2017", "dev_set", "development")),
    *((name, Folder.TEST) for name in ("Test", "testing", "tests", "eval", "Evaluation", "test set")),
    *(("META", Folder.META), ("Select", Folder.SELECT)),
]


@pytest.mark.parametrize(
    ("train", "other", "role"),
    [*(("train", *other) for other in OTHER_NAMES), *((train, *OTHER_NAMES[0]) for train in TRAIN_NAMES[1:])],
)
def test_splits_are_known_by_their_names(tmp_path: Path, train: str, other: str, role: Folder) -> None:
    found = rows(splits(tmp_path, train, other))
    of = {train: Folder.TRAIN, other: role}
    assert len(found) == 4
    assert {(os.fsdecode(path).split("/")[0], label, folder) for path, label, folder in found} == {
        (name, label, of[name]) for name in of for label in (0, 1)
    }


def test_val_selects_where_there_is_a_test(tmp_path: Path) -> None:
    walk = Walk(os.fsencode(splits(tmp_path, "training", "Dev", "Testing")))
    expected = {"training": Folder.TRAIN, "Dev": Folder.SELECT, "Testing": Folder.TEST}
    assert layout_of(walk) == expected
    assert next(iter(layout_of(walk))) == "training"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["val", "test"], "test and val are names of splits, but none is a training folder"),
        (["dev", "eval"], "none is a training folder"),
        (
            ["train", "holdout"],
            "train is the name of a split, and its folders (cat, dog) are named as those in or beside holdout",
        ),
        (["train", "training"], "train is the name of a split"),
        (["test", "production"], "test is the name of a split"),
        (["train", "Train", "val"], "Train and train would both be the train split; keep one"),
        (["train", "test", "eval"], "eval and test would both be the test split"),
    ],
)
def test_splits_are_never_trained_as_classes(tmp_path: Path, names: list[str], said: str) -> None:
    refused(splits(tmp_path, *names), said)


def test_a_split_beside_the_classes_is_refused(tmp_path: Path) -> None:
    refused(splits(put(tmp_path, "cat/1.png", "dog/1.png"), "test"), "test is the name of a split", "cat, dog")


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "car/1.png", "train/steam/2.png", "car/red/2.png", "train_station/1.png")
    assert {label for _, label, folder in rows(tmp_path) if folder == Folder.ALL} == {0, 1, 2}
    assert len(rows(put(tmp_path / "checks", "valid/1.png", "invalid/1.png"))) == 2


def test_a_lone_folder_that_holds_the_classes_is_named(tmp_path: Path) -> None:
    put(tmp_path, *(f"stamps/{number:02}/1.png" for number in range(16)))
    refused(tmp_path, "one class only (stamps)", "it holds 16 folders", "point data.root at it")
    refused(put(tmp_path / "x", "cat/1.png"), "one class only (cat); at least two are needed")
    refused(splits(tmp_path / "y", "Training"), "point data.root at it")


def test_remedies_for_a_class_that_a_split_lacks_do_not_contradict(tmp_path: Path) -> None:
    splits(tmp_path, "train", "val")
    put(tmp_path, "train/emu/1.png")
    refused(tmp_path, "val differ from train: it lacks emu; add images of what it lacks, or remove or rename")
    (tmp_path / "val" / "emu").mkdir()
    refused(tmp_path, "no image in class folder val/emu; add images or remove the class from every split")
    (tmp_path / "train" / "emu" / "1.png").rename(tmp_path / "val" / "emu" / "1.png")
    (tmp_path / "train" / "emu").rmdir()
    refused(tmp_path, "it has emu, which train has not; remove or rename")
    (tmp_path / "meta" / "dog").mkdir(parents=True)
    (tmp_path / "val" / "emu" / "1.png").unlink()
    (tmp_path / "val" / "emu").rmdir()
    refused(tmp_path, "no image in class folder meta/dog; add images or remove the folder")


def test_images_of_other_endings_are_counted_and_said_at_every_start(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png", "cat/2.heic", "dog/deep/3.HEIC", "dog/4.svg", "dog/.5.jxl", "dog/6.txt")
    for _ in ("indexed", "from the cache"):
        with pytest.warns(UserWarning, match=r"left out, .* not read: 2 \.heic, 1 \.svg; convert them"):
            assert len(load_index(tmp_path, threads=1)) == 2
    put(tmp_path, "emu/1.jxl").joinpath("void").mkdir()
    refused(tmp_path, "no image in class folder emu, void (files that are not read: 2 .heic, 1 .jxl, 1 .svg); add")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cat", "cat"),
        ("golden retriever", "golden retriever"),
        ("caf\u00e9", "caf\u00e9"),
        ("cafe\u0301", "'cafe\\u0301'"),
        ("cat ", "'cat '"),
        (" cat", "' cat'"),
        ("a  b", "'a  b'"),
        ("a\u00a0b", "'a\\xa0b'"),
        ("a\nb", "'a\\nb'"),
        ("\udce9", "'\\udce9'"),
        ("", ""),
    ],
)
def test_names_that_the_eye_would_confuse_are_escaped(name: str, text: str) -> None:
    assert shown(name) == text


def test_names_that_differ_by_a_blank_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat /1.png", "val/dog/1.png")
    refused(tmp_path, "lacks cat and has 'cat '")


def test_many_names_are_shortened() -> None:
    assert some(str(number) for number in range(9, -1, -1)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert some(f"{number:02}" for number in range(12)).endswith("08, 09 and 2 more")


def test_classes_are_matched_by_name() -> None:
    assert outputs_of(("dog", "owl"), ("cat", "dog", "emu", "owl")).tolist() == [1, 3]
    with pytest.raises(DataError) as caught:
        outputs_of(("cat", "dogs"), ("cat", "dog"))
    assert "not trained on the classes dogs; it knows 2 classes: cat, dog; data.root has 2: cat, dogs" in str(
        caught.value
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_images_of_classes_within_each_other_are_sorted_together(tmp_path: Path, threads: int) -> None:
    put(tmp_path, *("a/0.png", "a/m/1.png", "a/m/2.png", "a/z.png", "a b/3.png", "b/4.png"))
    classes, found = images_in_folders(Walk(os.fsencode(tmp_path)), "leaf", ClassMap(), threads)
    names = [b"a b/3.png", b"a/0.png", b"a/m/1.png", b"a/m/2.png", b"a/z.png", b"b/4.png"]
    assert list(found.paths) == sorted(names) == names
    assert [classes[label] for label in found.labels] == ["a b", "a", "m", "m", "a", "b"]
    assert found.folders.tolist() == [Folder.ALL] * 6


def test_what_several_threads_list_is_put_together(tmp_path: Path) -> None:
    root = splits(tmp_path, "train", "val")
    put(root / "train", *(f"cat/{number}.png" for number in range(20)))
    (root / "train/dog/1.heic").write_bytes(b"")
    one, several = Walk(os.fsencode(root)), Walk(os.fsencode(root))
    found = [images_in_folders(walk, "top", ClassMap(), threads)[1] for walk, threads in ((one, 1), (several, 4))]
    assert list(found[0].paths) == list(found[1].paths) == sorted(found[0].paths)
    assert one.watch == several.watch
    assert one.others() == several.others() == "1 .heic"

import tracemalloc
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.data import splits as splits_module
from fastaug.data.image_headers import Status
from fastaug.data.index import Folder, Index
from fastaug.data.path_table import PathTable
from fastaug.data.splits import ROLES, Splits, make_splits
from fastaug.errors import DataError


def table(counts: dict[Folder, list[int]], damaged: tuple[int, ...] = ()) -> Index:
    """An index with counts[folder][label] images, without files on disk."""
    names, labels, folders = [], [], []
    for folder in sorted(counts, key=lambda folder: folder.name):
        for label, count in enumerate(counts[folder]):
            names += [f"{folder.name.lower()}/{label:03}/{i:05}.jpg".encode() for i in range(count)]
            labels += [label] * count
            folders += [folder] * count
    status = np.zeros(len(names), np.uint8)
    status[list(damaged)] = Status.DAMAGED
    extent = np.full(len(names), 9, np.int32)
    return Index(
        root=Path("/data"),
        classes=tuple(str(label) for label in range(len(next(iter(counts.values()))))),
        paths=PathTable.of(names),
        labels=np.array(labels, np.int64),
        heights=extent,
        widths=extent,
        status=status,
        folders=np.array(folders, np.uint8),
        reasons=dict.fromkeys(damaged, "empty file"),
    )


def names(index: Index, splits: Splits, role: str) -> set[bytes]:
    return {index.paths[i] for i in splits.of(role).tolist()}


counts = st.lists(st.integers(4, 60), min_size=2, max_size=6)
percent = st.integers(10, 20).map(lambda n: n / 100)
seeds = st.integers(0, 2**64 - 1)


@settings(max_examples=60)
@given(counts, percent, percent, percent, seeds)
def test_fractions_are_a_stratified_partition(sizes, meta, select, test, seed):
    index = table({Folder.ALL: [n + 3 for n in sizes]})
    splits = make_splits(index, seed=seed, meta=meta, select=select, test=test)
    parts = [splits.of(role) for role in ROLES]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(index)))
    for ids in parts:
        assert ids.dtype == np.int64
        assert (np.diff(ids) > 0).all()
    for role, value in (("meta", meta), ("select", select), ("test", test)):
        got = np.bincount(index.labels[splits.of(role)], minlength=len(sizes))
        exact = Fraction(str(value))
        assert got.tolist() == [floor(exact * (n + 3) + Fraction(1, 2)) for n in sizes]
    assert (np.bincount(index.labels[splits.train], minlength=len(sizes)) >= 1).all()


@settings(max_examples=30)
@given(counts, percent, percent, percent, seeds)
def test_one_fraction_leaves_those_before_it_alone(sizes, meta, select, test, seed):
    index = table({Folder.ALL: [n + 3 for n in sizes]})
    both = make_splits(index, seed=seed, test=test, select=select, meta=meta)
    again = make_splits(index, meta=meta, select=select, test=test, seed=seed)
    fewer = make_splits(index, seed=seed, test=test, select=select)
    only = make_splits(index, seed=seed, test=test)
    assert all((both.of(role) == again.of(role)).all() for role in ROLES)
    assert (fewer.test == both.test).all()
    assert (fewer.select == both.select).all()
    assert (only.test == both.test).all()
    assert not len(only.meta)


@settings(max_examples=30)
@given(counts, percent, percent, seeds, st.data())
def test_files_added_to_a_class_leave_the_others_alone(sizes, meta, test, seed, data):
    grown = list(sizes)
    label = data.draw(st.integers(0, len(sizes) - 1))
    grown[label] += data.draw(st.integers(1, 20))
    small, large = table({Folder.ALL: [n + 3 for n in sizes]}), table({Folder.ALL: [n + 3 for n in grown]})
    one, other = (make_splits(index, seed=seed, meta=meta, test=test) for index in (small, large))
    own = f"all/{label:03}/".encode()
    for role in ROLES:
        before, after = names(small, one, role), names(large, other, role)
        assert {n for n in before if not n.startswith(own)} == {n for n in after if not n.startswith(own)}


def test_the_choice_depends_on_the_seed_and_the_class():
    index = table({Folder.ALL: [200, 200]})
    one, other = (make_splits(index, seed=seed, test=0.5) for seed in (1, 2))
    assert 60 < len(np.intersect1d(one.test, other.test)) < 140
    first, second = (set((one.test[index.labels[one.test] == label] % 200).tolist()) for label in (0, 1))
    assert 20 < len(first & second) < 80


def test_known_choice():
    """Pinned: a run continued with a later version must not train on its test images."""
    splits = make_splits(table({Folder.ALL: [10, 10]}), seed=7, meta=0.2, test=0.3)
    assert (splits.test.tolist(), splits.meta.tolist()) == ([2, 4, 9, 11, 16, 19], [5, 6, 10, 12])


def test_halves_round_up_on_the_decimal_as_written():
    splits = make_splits(table({Folder.ALL: [50, 50]}), seed=0, test=0.29)  # 14.5; 0.29 * 50 < 14.5 in binary
    assert len(splits.test) == 30


def test_every_class_keeps_a_training_image():
    splits = make_splits(table({Folder.ALL: [1, 2, 3, 40]}), seed=0, test=0.5, meta=0.4)
    assert set(table({Folder.ALL: [1, 2, 3, 40]}).labels[splits.train]) == {0, 1, 2, 3}


def test_damage_changes_no_membership():
    clean = make_splits(table({Folder.ALL: [9, 9]}), seed=0, test=0.3, meta=0.2)
    marked = make_splits(table({Folder.ALL: [9, 9]}, damaged=(0, 4, 11)), seed=0, test=0.3, meta=0.2)
    assert all((clean.of(role) == marked.of(role)).all() for role in ROLES)


FOLDERS = {Folder.TRAIN: [20, 20], Folder.META: [0, 2], Folder.SELECT: [3, 3], Folder.TEST: [5, 5]}


def test_folders_give_the_roles():
    index = table(FOLDERS)
    splits = make_splits(index, seed=0)
    for role in ROLES:
        assert splits.of(role).tolist() == np.flatnonzero(index.folders == Folder[role.upper()]).tolist()


def test_fractions_come_out_of_the_training_folder():
    index = table({Folder.TRAIN: [20, 20], Folder.TEST: [5, 5]})
    splits = make_splits(index, seed=0, meta=0.1, select=0.2)
    assert set(index.folders[splits.test]) == {Folder.TEST}
    assert set(index.folders[np.concatenate([splits.meta, splits.select])]) == {Folder.TRAIN}
    assert [len(splits.of(role)) for role in ROLES] == [28, 4, 8, 10]


@pytest.mark.parametrize("role", ["meta", "select", "test"])
def test_a_fraction_beside_a_folder_is_refused(role):
    with pytest.raises(DataError, match=rf"data.{role}_fraction = 0.1.*folder for {role}"):
        make_splits(table(FOLDERS), seed=0, **{role: 0.1})


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_fractions_outside_their_range_are_refused(value):
    with pytest.raises(ValueError, match=r"data\.meta_fraction"):
        make_splits(table(FOLDERS), seed=0, meta=value)


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="sum must be below 1"):
        make_splits(table({Folder.ALL: [9, 9]}), seed=0, meta=0.5, test=0.5)


def test_an_empty_test_split_is_refused():
    with pytest.raises(DataError, match=r"data\.test_fraction"):
        make_splits(table({Folder.ALL: [9, 9]}), seed=0, meta=0.2)


@pytest.mark.parametrize("role", ["meta", "select", "test"])
def test_a_fraction_that_takes_nothing_is_refused(role):
    given = {"test": 0.3, role: 0.01}
    with pytest.raises(DataError, match=rf"raise data\.{role}_fraction"):
        make_splits(table({Folder.ALL: [9, 9]}), seed=0, **given)


def test_a_split_of_damaged_images_alone_is_refused():
    counts = {Folder.TEST: [2, 2], Folder.TRAIN: [5, 5]}
    make_splits(table(counts, damaged=(0, 1, 2)), seed=0)
    with pytest.raises(DataError, match=r"all 4 images of test are damaged.*test/000/00000.jpg \(empty file\)"):
        make_splits(table(counts, damaged=(0, 1, 2, 3)), seed=0)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'val'"):
        make_splits(table(FOLDERS), seed=0).of("val")


# --- lists


def lists(folder: Path, **texts: str | bytes) -> Path:
    for role, text in texts.items():
        (folder / f"{role}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_lists_of_ids_and_paths(tmp_path):
    index = table({Folder.ALL: [5, 5]})
    train = "\ufeff# mine\n0\n\n all/001/00004.jpg \r\n2\n"
    splits = make_splits(index, seed=0, files=lists(tmp_path, train=train, test="5\n6", meta="7"))
    assert [splits.of(role).tolist() for role in ROLES] == [[0, 2, 9], [7], [], [5, 6]]


def test_long_lists_are_read_in_stretches(tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "STRETCH", 2)
    index = table({Folder.ALL: [5, 5]})
    train = "\ufeff0\n# mine\n\n all/001/00004.jpg\n2\n"
    found = make_splits(index, seed=0, files=lists(tmp_path, train=train, test="5\n6\n7"))
    assert [found.of(role).tolist() for role in ROLES] == [[0, 2, 9], [], [], [5, 6, 7]]
    with pytest.raises(DataError, match=r"line 7: 'all/001/00004\.jpg' is the image of line 4 again"):
        make_splits(index, seed=0, files=lists(tmp_path, train=train + "3\nall/001/00004.jpg"))


def test_a_long_list_of_the_meta_split_is_never_in_memory_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(splits_module, "STRETCH", 2)
    remarks = f"#{'x' * (1 << 16)}\n" * 64  # 4 MiB
    folder, index = lists(tmp_path, train="0", test="5", meta=f"7\n{remarks}"), table({Folder.ALL: [5, 5]})
    del remarks
    tracemalloc.start()
    try:
        found = make_splits(index, seed=0, files=folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.meta.tolist() == [7]
    assert peak < 1 << 20


def test_a_listed_name_need_not_be_text(tmp_path):
    index = table({Folder.ALL: [2, 2]})
    odd = [b"all/000/\xff.jpg", *list(index.paths)[1:]]
    index = Index(**{**vars(index), "paths": PathTable.of(odd)})
    splits = make_splits(index, seed=0, files=lists(tmp_path, train=b"all/000/\xff.jpg\n", test="2"))
    assert splits.train.tolist() == [0]


def test_roles_without_a_list_keep_their_folder(tmp_path):
    index = table(FOLDERS)
    train = np.flatnonzero(index.folders == Folder.TRAIN)
    splits = make_splits(index, seed=0, files=lists(tmp_path, train=f"{train[0]}\n{train[3]}"))
    assert splits.train.tolist() == [train[0], train[3]]
    assert splits.test.tolist() == np.flatnonzero(index.folders == Folder.TEST).tolist()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"test": "1"}, "train.txt is missing"),
        ({"train": "0\nall/000/x.jpg\n", "test": "1"}, "train.txt, line 2: 'all/000/x.jpg' is neither"),
        ({"train": "0", "test": "# one\n10\n"}, "test.txt, line 2: '10' is neither an id below 10"),
        ({"train": "-1", "test": "1"}, "train.txt, line 1: '-1'"),
        ({"train": "9" * 5000, "test": "1"}, "train.txt, line 1: '999"),
        ({"train": "3\n0\nall/000/00003.jpg", "test": "1"}, "train.txt, line 3: .* image of line 1 again"),
        (
            {"train": "3\n4", "test": "5\n4"},
            r"train and test share 1 images, the first id 4 \(all/000/00004.jpg\)",
        ),
        ({"train": "3", "meta": "5", "select": "5", "test": "4"}, "meta and select share 1"),
        ({"train": "", "test": "4"}, "no training image"),
        ({"train": "3"}, "no test image"),
        ({"train": "3", "test": "4", "val": "5"}, "val.txt is no split"),
    ],
)
def test_bad_lists_are_refused(tmp_path, texts, message):
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        make_splits(table({Folder.ALL: [5, 5]}), seed=0, files=lists(tmp_path, **texts))
    assert "data.splits" in str(caught.value)


def test_a_list_that_takes_from_another_folder_is_refused(tmp_path):
    index = table(FOLDERS)
    one = np.flatnonzero(index.folders == Folder.TEST)[0]
    with pytest.raises(DataError, match="train and test share 1"):
        make_splits(index, seed=0, files=lists(tmp_path, train=str(one)))


def test_fractions_beside_lists_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.test_fraction = 0.1 together with data.splits"):
        make_splits(table(FOLDERS), seed=0, test=0.1, files=lists(tmp_path, train="0"))

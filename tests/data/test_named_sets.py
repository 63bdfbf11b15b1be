"""What data.root can name, and what is said of a name that is not known."""

from pathlib import Path

import pytest

from fastaug.data.build import find_index, find_root
from fastaug.data.listing import Listing
from fastaug.data.packed.index import PackedSet
from fastaug.data.packed.records import Keys
from fastaug.errors import DataError


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("wsd:/data/x", r"wsd is no kind of set; did you mean wds:/data/x\? known: embedded, cifar10"),
        ("cifar1o:/data/x", r"did you mean cifar1"),
        ("quux:/data/x", r"quux is no kind of set; known: embedded"),
        ("wds:", r"wds: names no place; write wds:PLACE"),
        ("wds/imagenet", r"wds/imagenet is not there; .* wds/NAME in timm is written wds:FOLDER here"),
        ("hfds/timm/imagenet", r"written hfds:FOLDER here"),
        ("tfds/imagenet2012", r"written tfrecord:FOLDER here"),
        ("torch/photos", r"torch/photos is not there; if it is a folder, correct the path; .* written KIND:FOLDER"),
        ("torch/image_folder", r"what is torch/image_folder in timm is written as the path of the folder alone here"),
        ("torch/imagenet", r"what is torch/imagenet in timm is written as the path of the folder alone here"),
        ("torch/cifar10", r"KIND:FOLDER, KIND one of cifar10, cifar100, mnist, svhn here"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(root: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_root(root, progress=False)


def test_a_folder_may_have_a_colon_or_a_name_of_timm_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run:1", "wds/images"):
        (tmp_path / name).mkdir(parents=True)
        assert find_root(name, progress=False) == Path(name)


def test_keys_go_with_packed_sets_alone() -> None:
    assert find_root("hfds:/x", progress=False, keys=Keys(label="fine")) == PackedSet("hfds", "/x", Keys(label="fine"))
    with pytest.raises(DataError, match=r"wds, tfrecord, hfds, parquet.* data.root is /x; leave them out"):
        find_root("/x", progress=False, keys=Keys(image="png"))


def test_a_packed_set_takes_no_listing_but_a_class_map() -> None:
    with pytest.raises(DataError, match=r"hfds:/x has its own images, labels and splits; leave out data.table"):
        find_index(PackedSet("hfds", "/x"), "ignore", False, Listing(class_level="leaf"))

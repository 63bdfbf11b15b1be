from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fastaug.data.index import cache_dir
from fastaug.data.packed.index import PackedIndex, PackedSet, load_packed
from fastaug.errors import DataError

from .conftest import CLASSES, Picture, arrow_table, split_of


def parquet(place: Path) -> PackedIndex:
    return load_packed(PackedSet("parquet", str(place)), threads=1)


def write(root: Path, pictures: list[Picture]) -> Path:
    root.mkdir()
    for split, name in (("train", "train"), ("validation", "val")):
        table = arrow_table(split_of(pictures, name)).append_column(
            "more", [list(range(len(split_of(pictures, name))))]
        )
        pyarrow.parquet.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=5)
    return root


def test_images_of_parquet_files(tmp_path: Path, pictures: list[Picture]) -> None:
    index = parquet(write(tmp_path / "set", pictures))
    expected = [*split_of(pictures, "train"), *split_of(pictures, "val")]
    assert [index.encoded(i).tobytes() for i in range(len(index))] == [picture.content for picture in expected]
    assert index.classes == tuple(CLASSES)
    assert [index.classes[label] for label in index.labels] == [picture.label for picture in expected]
    assert index.path(13) == f"{tmp_path}/set/validation-00000-of-00001.parquet:1".encode()
    assert len(parquet(tmp_path / "set" / "train-00000-of-00001.parquet")) == 12


def test_made_once(tmp_path: Path, pictures: list[Picture]) -> None:
    root = write(tmp_path / "set", pictures)
    made = set(parquet(root).files.paths)
    assert set(parquet(root).files.paths) == made


def test_nothing_is_written_for_what_cannot_be_used(tmp_path: Path, pictures: list[Picture]) -> None:
    before = set((cache_dir() / "packed").glob("*")) if (cache_dir() / "packed").exists() else set()
    root = write(tmp_path / "set", pictures)
    file = root / "validation-00000-of-00001.parquet"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:4] + bytes(500) + whole[504:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"validation-00000-of-00001.parquet: (truncated|broken)"):
            parquet(root)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column of images; it has label \(int64\), text \(string\)"):
        parquet(tmp_path / "a.parquet")
    assert set((cache_dir() / "packed").glob("*")) == before

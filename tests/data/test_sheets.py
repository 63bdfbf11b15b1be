"""Sheets: the same cells from every kind of file, and every wrong file told with its line."""

import os
from pathlib import Path

import pytest

from fastaug.data.sheets import Sheet, read_sheet
from fastaug.errors import DataError


def sheet(folder: Path, content: bytes, name: str = "t.csv") -> Sheet:
    (folder / name).write_bytes(content)
    return read_sheet(folder / name, "data.table")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"path,label\na b.jpg,x\n\nc.jpg,1\n"),
        ("t.csv", b"\xef\xbb\xbfpath,label\r\na b.jpg,x\r\n\r\nc.jpg,1"),
        ("t.csv", b'"path";"label"\n"a b.jpg";"x"\n\nc.jpg;1\n'),
        ("t.tsv", b"path\tlabel\na b.jpg\tx\n\nc.jpg\t1\n"),
    ],
)
def test_text_files_give_the_same_rows_and_the_lines_they_end_in(tmp_path: Path, name: str, content: bytes) -> None:
    found = sheet(tmp_path, content, name)
    assert (found.names, found.cells) == (["path", "label"], [["a b.jpg", "x"], ["c.jpg", "1"]])
    assert found.lines == [2, 4]


def test_parquet_gives_whole_numbers_as_a_csv_file_would_have_them(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [3.0, None, 2.5], "id": [1, 2, 3]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = read_sheet(tmp_path / "t.parquet", "data.table")
    assert found.cells == [["a.jpg", "3", "1"], ["b.jpg", "", "2"], ["c.jpg", "2.5", "3"]]
    assert found.lines == [1, 2, 3]
    parquet.write_table(pyarrow.table(columns | {"boxes": [[1], [], [2]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="has columns of lists, structures or bytes: boxes; leave them out"):
        read_sheet(tmp_path / "t.parquet", "data.table")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"t\.parquet is no parquet file that can be read"):
        read_sheet(tmp_path / "t.parquet", "data.table")


def test_a_name_that_is_no_text_comes_back_as_its_bytes(tmp_path: Path) -> None:
    (name,) = sheet(tmp_path, b"path,label\n\xff\xfe.jpg,x\n").cells[0][:1]
    assert os.fsencode(name) == b"\xff\xfe.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows below the names of its columns"),
        (b"path,label\n", "has no rows"),
        (b"path,label\na,b\na,b,c\n", "line 3 has 3 cells, line 1 2; put cells that hold the separator into quotes"),
        (b'path,label\n"a,b\n', "line 2: unexpected end of data; close or double the quotes"),
        ("path,label\na,b\n".encode("utf-16"), "holds NUL characters, as UTF-16 has; save it as UTF-8"),
    ],
)
def test_wrong_text_is_told_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=r"data\.table: .*t\.csv") as caught:
        sheet(tmp_path, content)
    assert message in str(caught.value)


def test_files_of_other_endings_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in one of \.csv, \.tsv"):
        sheet(tmp_path, b"path,label\na,b\n", "t.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_sheet(tmp_path / "none.csv", "data.table")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe\.csv cannot be read \(Not a regular file"):
        read_sheet(tmp_path / "pipe.csv", "data.table")


def test_columns_are_found_by_name_or_alias(tmp_path: Path) -> None:
    found = sheet(tmp_path, b" Path ,Class\n a.jpg , x \n")
    assert (found.column("path", ("file",)), found.column("label", ("class",))) == (["a.jpg"], ["x"])
    assert found.column("split", needed=False) is None
    with pytest.raises(DataError, match=r"has no column split \(or set\), but ' Path ', Class; name"):
        found.column("split", ("set",))
    both = sheet(tmp_path, b"file,image,label\na,b,c\n")
    with pytest.raises(DataError, match="has several columns of the path: file and image; keep one"):
        both.column("path", ("file", "image"))
    assert sheet(tmp_path, b"file,path\na,b\n").column("path", ("file",)) == ["b"]  # the name itself comes first


def test_wrong_rows_are_named_the_first_of_them_and_counted(tmp_path: Path) -> None:
    found = sheet(tmp_path, b"path\n" + b"a\n" * 13)
    with pytest.raises(DataError, match=r"13 rows with no label: line 2 \(a\), line 3 .* and 3 more; fill it in$"):
        found.refuse(zip(found.lines, "a" * 13, strict=True), "no label", "fill it in")
    found.refuse([], "no label", "fill it in")

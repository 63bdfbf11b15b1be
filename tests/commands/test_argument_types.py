"""What options of commands say of values that they cannot take, before any work."""

import argparse
from pathlib import Path

import pytest

from fastaug.commands._argument_types import one_or_more, output_file, zero_or_more


def test_files_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").touch()
    for place in (tmp_path / "new.json", tmp_path / "old.json"):
        assert output_file(str(place)) == place
    (tmp_path / "link.json").symlink_to(tmp_path / "old.json")
    assert output_file(str(tmp_path / "link.json")) == tmp_path / "link.json"
    for place, words in (
        (tmp_path, "is a folder; name a file in it"),
        (Path(), "is a folder; name a file in it"),
        (tmp_path / "none" / "x.json", f"there is no folder {tmp_path}/none; make it"),
        (tmp_path / "old.json" / "x.json", f"there is no folder {tmp_path}/old.json"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long; name another file"),
        (Path("/dev/null"), "/dev/null is a device or a pipe; name a file"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            output_file(str(place))


def test_whole_numbers_have_a_least_one() -> None:
    assert (one_or_more("1"), zero_or_more("0"), zero_or_more("12")) == (1, 0, 12)
    for kind, text, words in (
        (one_or_more, "0", "must be at least 1, found 0"),
        (zero_or_more, "-1", "must be at least 0, found -1"),
        (zero_or_more, "1.5", "'1.5' is no whole number"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            kind(text)

"""Stamps of files: the compiled loop says what Python's os.stat says, of files of every kind."""

import os
from pathlib import Path

import numpy as np
import pytest

from fastaug.data import file_stamps
from fastaug.data.path_table import PathTable

TIMES = 1_234_567_890_123_456_789, 5, -7_000_000_003, 2**33 * 10**9, 10**19 + 3  # ns; the last is in 2286


def test_the_compiled_loop_agrees_with_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    for number, name in enumerate((b"a.jpg", b"below/\xff.jpg", "ü.jpg".encode(), b"empty.jpg", b"far.jpg")):
        file = os.path.join(os.fsencode(tmp_path), name)
        Path(os.fsdecode(file)).write_bytes(b"x" * number * 70_000)
        os.utime(file, ns=(0, TIMES[number]))
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("gone")
    names = [os.fsencode(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")]
    names += [b"missing.jpg", b"x" * 5000, b"below/../a.jpg", os.fsencode(tmp_path / "a.jpg")]
    paths, root = PathTable.of(names), os.fsencode(tmp_path)
    by_python = file_stamps.stamps_of(root, paths, 2)
    monkeypatch.setattr(file_stamps, "COMPILED_FROM", 0)
    monkeypatch.setattr(file_stamps, "_STRETCH", 3)  # several for each thread
    np.testing.assert_array_equal(file_stamps.stamps_of(root, paths, 2), by_python)
    seen = dict(zip(names, by_python.tolist(), strict=True))
    assert seen[b"a.jpg"] == seen[b"link.jpg"] == seen[b"below/../a.jpg"]
    assert seen[b"a.jpg"][1] == 1_234_567_890_123_456_789
    assert seen[b"far.jpg"][1] // 10**9 == min((tmp_path / "far.jpg").stat().st_mtime_ns // 10**9, 9_223_372_035)
    assert seen[b"missing.jpg"] == seen[b"nowhere.jpg"] == [-1, -1, -1]


def test_python_asks_where_statx_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    monkeypatch.setattr(file_stamps, "COMPILED_FROM", 0)
    monkeypatch.setattr(file_stamps, "_compiled_loop", lambda: lambda *_: None)  # which fills in nothing then
    assert file_stamps.stamps_of(os.fsencode(tmp_path), PathTable.of([b"a.jpg"]), 1)[0, 0] == 5

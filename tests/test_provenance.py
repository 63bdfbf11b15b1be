"""Versions and commit of a run, on machines that have not all of what could tell them."""

from pathlib import Path

import pytest

from fastaug.provenance import commit, versions


def test_versions_are_those_of_what_the_numbers_depend_on() -> None:
    assert {"torch", "timm", "accelerate"} <= versions().keys()


def test_without_git_there_is_no_commit_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_a_git_that_fails_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexit 128\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None

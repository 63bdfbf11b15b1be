"""The forms that the benchmark times hold the same images."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import packed
from fastaug.data.index import load_index


@pytest.mark.slow
def test_every_form_is_read_and_timed(tmp_path: Path, jpeg_folder: Callable[..., Path]) -> None:
    index = load_index(jpeg_folder(classes=2, images=32), threads=1)
    forms = packed.write_forms(tmp_path, index)
    assert {*forms} == {"folder", "shards", "wds", "tfrecord", "hfds"}
    figures = packed.report(*packed.measured(forms, rounds=1))
    assert figures["shards"]["of_shards"] == 1
    assert all(row["images_per_core_second"] > 0 for row in figures.values())

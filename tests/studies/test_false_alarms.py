"""The simulation of false alarms: it moves by evidence alone, and the same seed gives the same figure."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(STUDIES)
    yield importlib.import_module("false_alarms")
    sys.modules.pop("false_alarms")


def test_few_operations_fall_of_chance_and_none_before_anything_is_seen(study: Any) -> None:
    assert study.least_left(torch.Generator().manual_seed(0), updates=0) == 1
    left, again = (
        [study.least_left(draw, updates=20) for _ in range(40)]
        for draw in (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    )
    assert left == again
    assert all(0 < one <= 1 for one in left)
    assert 20 < left.count(1.0) < 40  # of 23, one has a z above 2.5 in about one run of eight

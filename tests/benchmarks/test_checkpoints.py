"""The benchmark of checkpoints: its gate on made-up times, its figures on a small network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from benchmarks import checkpoints


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize(("still", "met"), [(0.04, True), (0.06, False)])
def test_the_gate_is_the_median_share_of_a_save_that_training_waits_for(still: float, met: bool) -> None:
    found = {name: [(1.0, 0.5), (1.0, 0.5), (9.0, 0.5)] for name in checkpoints.TOLD}
    found["asynchronous"] = [(still, 0.01), (still, 0.01), (0.9, 0.01)]
    result = checkpoints.summary(found)
    assert result["gates"] == {"stands still < 5%": met}
    assert result["figures"]["share"] == pytest.approx(still)
    assert result["figures"]["share of processor time"] == pytest.approx(0.02)


@pytest.mark.slow
def test_every_kind_is_measured_in_every_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checkpoints.measure(
        tmp_path, 2, ["model.name=test_resnet", "data.img_size=32", "data.synthetic_classes=10"]
    )
    lengths = {name: len(values) for name, values in found.items()}
    assert lengths == {"waiting": 2, "asynchronous": 2, "first": 1, "idle": 8, "beside": 2, "rest": 2}
    assert all(wall > 0 for values in found.values() for wall, _ in values)
    checkpoints.show(found, checkpoints.summary(found))
    assert "an asynchronous save: training stands still" in capsys.readouterr().out

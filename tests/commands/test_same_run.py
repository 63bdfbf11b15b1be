"""Two run folders that are equal, and every way in which they may differ."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Compared = Callable[..., str]


def write_run(folder: Path, speed: float = 100.0) -> Path:
    """A run folder of two updates."""
    checkpoint = folder / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    save_file({"w": torch.tensor([1.0, float("nan")]), "n": torch.tensor(3)}, checkpoint / "model.safetensors")
    (folder / "checkpoints" / "last").write_text("step-00000002")
    train = [{"event": "train", "step": step, "loss": 0.1 * step, "images_per_second": speed} for step in (1, 2)]
    test = {"event": "test", "step": 2, "nll": float("nan")}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*train, test]))
    (folder / "ids-0.jsonl").write_text('{"step": 1, "ids": [3, 1]}\n{"step": 2, "ids": [0, 2]}\n')
    (folder / "samples.csv").write_text("id,loss\n1,0.5\n")
    return folder


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))

    return spoil


def weights(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return lambda run: save_file(tensors, run / "checkpoints" / "step-00000002" / "model.safetensors")


@pytest.fixture
def compared(tool: Compared) -> Compared:
    """compared(a, b, "word", ..., code=0): what the tool says."""
    return partial(tool, "same_run")


def test_the_same_training_at_another_speed_is_equal(tmp_path: Path, compared: Compared) -> None:
    said = compared(write_run(tmp_path / "a", 100.0), write_run(tmp_path / "b", 90.0))
    assert said.splitlines() == [
        f"{name}: equal" for name in ("ids-0.jsonl", "last/model.safetensors", "metrics.jsonl", "samples.csv")
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            replace("metrics.jsonl", "0.2,", "0.20000000000000004,"),
            "metrics.jsonl: line 2 (step 2), loss: 0.2 against",
        ),
        (replace("metrics.jsonl", '"nll"', '"grad_norm": 1, "nll"'), "grad_norm: not there against 1"),
        (
            replace("metrics.jsonl", '{"event": "test", "step": 2, "nll": NaN}\n', ""),
            "metrics.jsonl: 3 against 2 lines",
        ),
        (
            replace("ids-0.jsonl", "[0, 2]", "[2, 0]"),
            "ids-0.jsonl: line 2 (step 2), ids: [0, 2] against [2, 0]",
        ),
        (replace("samples.csv", "0.5", "0.6"), "samples.csv: line 2: 1,0.5 against 1,0.6"),
        (lambda run: (run / "samples.csv").unlink(), "samples.csv: only in"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "last/model.safetensors: only in"),
        (weights(w=torch.tensor([1.5, float("nan")]), n=torch.tensor(3)), "w differs by up to 0.5"),
        (weights(w=torch.tensor([1.0, float("nan")]), n=torch.tensor(4)), "n differs by up to 1"),
        (weights(w=torch.tensor([[1.0, float("nan")]]), n=torch.tensor(3)), "w: torch.float32 [2] against"),
        (weights(n=torch.tensor(3)), "w only in"),
    ],
    ids=["loss", "key", "lines", "order", "samples", "no samples", "no weights", "weight", "number", "shape", "tensor"],
)
def test_the_first_difference_is_named(
    tmp_path: Path, compared: Compared, spoil: Callable[[Path], None], message: str
) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    spoil(b)
    assert message in compared(a, b, code=1)


def test_new_keys_can_be_left_out(tmp_path: Path, compared: Compared) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    replace("metrics.jsonl", '"nll"', '"grad_norm": 1, "nll"')(b)
    compared(a, b, "--ignore", "grad_norm")


def test_another_folder_is_refused(tmp_path: Path, compared: Compared) -> None:
    assert "has no metrics.jsonl" in compared(write_run(tmp_path / "a"), tmp_path, code=2)

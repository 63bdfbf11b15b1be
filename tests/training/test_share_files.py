"""Checkpoints with a file of each process in place of whole weights, here of one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from fastaug.errors import StorageError
from fastaug.training import checkpoint
from fastaug.training.share_files import write_shares

TENSORS = {
    "model.weight": torch.randn(3, 2, 2, 2).to(memory_format=torch.channels_last),
    "model.count": torch.tensor(7),
    "ema.weight": torch.randn(5, dtype=torch.bfloat16),
    "optimizer.0.exp_avg": torch.randn(4),
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    shares = partial(write_shares, tensors=TENSORS, accelerator=Accelerator(cpu=True))
    return checkpoint.save(tmp_path, 3, {}, {"meta": {}, "kept": 1}, shares=shares)


def test_whole_weights_come_back_to_the_bit(saved: Path) -> None:
    assert not list(saved.glob("model*.safetensors"))
    weights, state = checkpoint.load(saved)
    assert state["kept"] == 1
    assert weights.keys() == {"model", "ema"}
    assert torch.equal(weights["model"]["weight"], TENSORS["model.weight"])
    assert torch.equal(weights["model"]["count"], TENSORS["model.count"])
    assert torch.equal(weights["ema"]["weight"], TENSORS["ema.weight"])
    assert checkpoint.load(saved, whole=False).weights == {}


@pytest.mark.parametrize("damage", ["flipped", "gone", "of another"])
def test_a_share_that_is_not_the_saved_one_is_noticed(saved: Path, damage: str) -> None:
    (file,) = saved.glob("shard-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    if damage == "gone":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(data)
    else:
        save_file({"model.weight": torch.zeros(3, 2, 2, 2)}, file)
    with pytest.raises(StorageError, match="damaged checkpoint"):
        checkpoint.load(saved)
    assert checkpoint.latest(saved.parent)[0] is None


def test_a_file_that_the_manifest_does_not_list_is_not_read(saved: Path) -> None:
    save_file({"model.weight": torch.zeros(3, 2, 2, 2)}, saved / "shard-00002-model-00001-of-00001.safetensors")
    with pytest.raises(StorageError, match=r"shard-00002.* is not of this checkpoint; remove it"):
        checkpoint.load(saved)


def test_a_share_that_holds_something_else_is_told(saved: Path) -> None:
    (file,) = saved.glob("shard-*.safetensors")
    file.write_bytes(b"junk" * 9)
    with pytest.raises(StorageError, match=r"cannot be loaded.*delete it to continue from an older one"):
        checkpoint.weights_of(saved, "model")


def test_a_share_that_cannot_be_written_leaves_the_old_checkpoint(saved: Path) -> None:
    def shares(folder: Path, make: Callable[[], None]) -> dict:
        def blocked() -> None:
            make()
            (folder / "shard-00001-model-00001-of-00001.safetensors").mkdir()

        return write_shares(folder, blocked, tensors=TENSORS, accelerator=Accelerator(cpu=True))

    with pytest.raises(StorageError, match=r"cannot be saved by process 0.*Is a directory"):
        checkpoint.save(saved.parent, 4, {}, {}, shares=shares)
    assert checkpoint.latest(saved.parent) == (saved, [])
    checkpoint.prune(saved.parent, 1, None)
    assert not list(saved.parent.glob("*.tmp"))


FAILING = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from fastaug.errors import StorageError
from fastaug.training.share_files import write_shares

accelerator, folder = Accelerator(cpu=True), Path(sys.argv[2])

def full():
    raise StorageError("full disk")

def blocked():
    (folder / "shard-00002-model-00001-of-00001.safetensors").mkdir(parents=True)

for make, said in ((full, "full disk"), (blocked, "cannot be saved")):
    tensors = {f"model.{name}": torch.zeros(4) for name in "abcd"}
    try:
        write_shares(folder, make, tensors=tensors, accelerator=accelerator)
    except StorageError as error:
        assert said in str(error), error
    else:
        raise AssertionError(said)
accelerator.end_training()
"""


def test_all_processes_hear_of_the_failure_of_one(tmp_path: Path, in_processes: Callable[..., str]) -> None:
    in_processes(2, "-c", FAILING, tmp_path / "step-00000001.tmp")

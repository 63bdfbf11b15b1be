import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastaug.errors import StorageError
from fastaug.training import checkpoint
from fastaug.training.checkpoint import (
    OutOfReachError,
    Weights,
    attach,
    latest,
    load,
    name_of,
    prune,
    save,
    steps_of,
    verify,
)

ROOT = Path(__file__).resolve().parents[2]


def weights(step: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(step)
    convolution = torch.randn(8, 4, 3, 3, generator=generator)
    model = {
        "conv.weight": convolution.to(memory_format=torch.channels_last),
        "bn.num_batches_tracked": torch.tensor(step),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "part": torch.arange(20.0).view(4, 5).t(),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "empty": torch.zeros(0, 3),
    }
    return {"model": model, "ema": {"conv.weight": convolution + 1}}


def state(step: int = 0) -> dict[str, object]:
    return {
        "position": 64 * step,
        "progress": {"step": step, "seconds": 1.5, "best": None, "skipped": {3: "truncated"}},
        "optimizer": {"state": {0: {"momentum_buffer": torch.full((3,), float(step))}}, "param_groups": [{"lr": 0.1}]},
    }


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def saved(folder: Path, *steps: int) -> list[Path]:
    return [save(folder, step, weights(step), state(step)) for step in steps]


def damage(file: Path, at: float = 0.5, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1 << bit
    file.write_bytes(data)


def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 7)
    assert path == tmp_path / "step-00000007"
    assert (tmp_path / "last").read_text() == "step-00000007"
    loaded = load(path)
    assert loaded.weights.keys() == {"model", "ema"}
    for stem, tensors in weights(7).items():
        assert loaded.weights[stem].keys() == tensors.keys()
        for name, tensor in tensors.items():
            other = loaded.weights[stem][name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert bits(other) == bits(tensor), name
    assert loaded.state["progress"] == state(7)["progress"]
    assert loaded.state["optimizer"]["state"][0]["momentum_buffer"].tolist() == [7.0] * 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_network_and_its_optimizer_continue_to_the_bit(tmp_path: Path) -> None:
    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(
            memory_format=torch.channels_last
        )
        return network, torch.optim.AdamW(network.parameters(), lr=0.01)

    def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            network(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    network, optimizer = made()
    train(network, optimizer, 0, 3)
    path = save(tmp_path, 3, {"model": network.state_dict()}, {"optimizer": optimizer.state_dict()})
    train(network, optimizer, 3, 6)
    again, other = made()
    loaded = load(path)
    again.load_state_dict(loaded.weights["model"])
    other.load_state_dict(loaded.state["optimizer"])
    train(again, other, 3, 6)
    for name, tensor in network.state_dict().items():
        assert bits(tensor) == bits(again.state_dict()[name]), name


FILES = ("model.safetensors", "ema.safetensors", "state.pt", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("at", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_one_flipped_bit_is_noticed_and_the_checkpoint_passed_over(tmp_path: Path, file: str, at: float) -> None:
    older, newer = saved(tmp_path, 1, 2)
    damage(newer / file, at, bit=random.Random(f"{file}{at}").randrange(8))
    assert verify(newer) is not None
    assert verify(older) is None
    path, warnings = latest(tmp_path)
    assert path == older
    assert len(warnings) == 1
    assert str(newer) in warnings[0]
    with pytest.raises(StorageError, match=r"step-00000002: damaged checkpoint: .*; delete it to continue"):
        load(newer)


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    manifest = path / "manifest.json"
    sound = manifest.read_bytes()
    for position in range(len(sound)):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << position % 8
        manifest.write_bytes(flipped)
        assert verify(path) is not None, bytes(flipped[max(0, position - 20) : position + 20])
    manifest.write_bytes(sound)
    assert verify(path) is None


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("left", [0.0, 0.5, -1])
def test_a_truncated_or_missing_file_is_noticed(tmp_path: Path, file: str, left: float) -> None:
    older, newer = saved(tmp_path, 1, 2)
    if left < 0:
        (newer / file).unlink()
    else:
        os.truncate(newer / file, int(left * (newer / file).stat().st_size))
    assert latest(tmp_path)[0] == older


@pytest.mark.parametrize("manifest", ["[]", "null", "3", '{"files": []}', '{"files": {"state.pt": 3}}', "{}"])
def test_a_strange_manifest_is_no_manifest(tmp_path: Path, manifest: str) -> None:
    older, newer = saved(tmp_path, 1, 2)
    (newer / "manifest.json").write_text(manifest)
    assert latest(tmp_path)[0] == older


def test_all_damaged_or_none_there(tmp_path: Path) -> None:
    assert latest(tmp_path) == (None, [])
    assert latest(tmp_path / "absent") == (None, [])
    for path in saved(tmp_path, 1, 2):
        damage(path / "state.pt")
    path, warnings = latest(tmp_path)
    assert path is None
    assert len(warnings) == 2


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 3)
    shutil.copytree(path, tmp_path / "step-00000004.tmp")
    shutil.copytree(path, tmp_path / "step-00000005-kept by hand")
    shutil.copytree(path, tmp_path / "step-6")
    (tmp_path / "step-00000007").write_text("a file")
    (tmp_path / "step-00000008").mkdir()
    assert steps_of(tmp_path) == [3, 8]
    assert latest(tmp_path)[0] == path
    assert (path / "manifest.json").is_file()


def test_the_newest_is_the_one_of_the_largest_step(tmp_path: Path) -> None:
    saved(tmp_path, 9, 10, 100)
    assert steps_of(tmp_path) == [9, 10, 100]
    assert latest(tmp_path)[0] == tmp_path / "step-00000100"
    assert name_of(123456789) == "step-123456789"
    saved(tmp_path, 123456789)
    assert latest(tmp_path)[0] == tmp_path / "step-123456789"


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5)
    prune(tmp_path, keep=2, best=2)
    assert steps_of(tmp_path) == [2, 4, 5]
    prune(tmp_path, keep=3, best=None)
    assert steps_of(tmp_path) == [2, 4, 5]
    prune(tmp_path, keep=1, best=5)
    assert steps_of(tmp_path) == [5]
    assert verify(tmp_path / "step-00000005") is None


def test_prune_removes_what_killed_saves_left_and_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-00000002.tmp").mkdir()
    (tmp_path / "step-00000002.tmp" / "state.pt").write_text("half")
    (tmp_path / ".last.4711.tmp").write_text("step-0")  # killed between writing the pointer and naming it
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-00000001-kept").mkdir()
    prune(tmp_path, keep=1, best=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last", "notes.txt", "step-00000001", "step-00000001-kept",
    ]  # fmt: skip


def test_prune_after_a_fall_back_keeps_the_new_checkpoint_not_the_damaged_newer_one(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010" / "state.pt")
    assert latest(tmp_path)[0] == tmp_path / "step-00000005"  # a run continues from here ...
    saved(tmp_path, 7)  # ... and is stopped early
    prune(tmp_path, keep=1, best=None)
    assert latest(tmp_path) == (tmp_path / "step-00000007", [])
    assert (tmp_path / (tmp_path / "last").read_text()).is_dir()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / "model.safetensors")
    saved(tmp_path, 2)
    assert latest(tmp_path) == (tmp_path / "step-00000002", [])


def test_what_a_killed_save_of_the_same_step_left_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "step-00000002.tmp"
    left.mkdir()
    (left / "stranger.safetensors").write_text("half")
    (path,) = saved(tmp_path, 2)
    assert not left.exists()
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)


def test_a_failing_storage_is_not_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, 1, {"model": {"w": torch.ones(3)}}, {"step": 1})

    def stale(*_: object) -> object:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(hashlib, "file_digest", stale)
    with pytest.raises(OutOfReachError, match=r"cannot be read \(Stale file handle\); check the storage"):
        load(path)


def test_a_state_that_needs_code_to_load_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"model": {}}, {"x": Path("a class that torch does not allow")})
    with pytest.raises(StorageError, match="cannot be loaded"):
        load(path)


def in_a_child(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def kill(folder: Path, kills: int, *options: str) -> None:
    """Compares a folder that was killed so often with one that never was."""
    command = [sys.executable, "-m", "attacks.kills", str(folder), str(kills), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{kills} kills" in ended.stdout


@pytest.mark.slow  # of the sample of attacks that CI runs after the tests
def test_after_any_kills_a_folder_is_that_of_a_run_without(tmp_path: Path) -> None:
    kill(tmp_path, 20)


@pytest.mark.slow
def test_after_any_kills_while_checkpoints_are_written_beside_training_too(tmp_path: Path) -> None:
    kill(tmp_path, 20, "--async")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_five_hundred_kills_too(tmp_path: Path) -> None:
    kill(tmp_path, 500)


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from fastaug.training.checkpoint import save
from fastaug.errors import StorageError
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
CASES = [("weights", 100_000, 1, 50_000), ("state", 10, 100_000, 50_000), ("all", 10, 1, 9)]
for name, weights, others, limit in CASES:
    folder = Path(sys.argv[1]) / name
    save(folder, 1, {"model": {"w": torch.ones(10)}}, {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save(folder, 2, {"model": {"w": torch.ones(weights)}}, {"x": torch.ones(others)})
    except StorageError as error:
        message = " ".join(str(error).split())
    else:
        message = "saved"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(message)
"""


def test_a_full_disk_is_a_storage_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    ended = in_a_child(FULL_DISK, tmp_path)
    assert ended.returncode == 0, ended.stderr
    messages = ended.stdout.splitlines()
    assert len(messages) == 3
    for message in messages:
        assert re.search(r"step-00000002: cannot be saved: .*; free space or choose another run\.dir", message)
    for case in ("weights", "state", "all"):
        folder = tmp_path / case
        assert latest(folder) == (folder / "step-00000001", [])
        assert (folder / "last").read_text() == "step-00000001"
        assert sorted(path.name for path in folder.iterdir()) == ["last", "step-00000001"]


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be saved"):
        saved(tmp_path / "file" / "checkpoints", 1)


def test_the_manifest_lists_every_file_with_its_size(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 4)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 4
    assert manifest["format"] == 1
    sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.name != "manifest.json"}
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == sizes


def test_nothing_in_the_project_loads_code() -> None:
    """A recipe, a checkpoint or a cache from elsewhere must not be able to run anything."""
    forbidden = re.compile(
        r"weights_only\s*=\s*False|\bpickle\.loads?\(|allow_pickle\s*=\s*True|\byaml\.(?:unsafe_|full_)?load"
    )
    found = {
        (str(file.relative_to(ROOT)), line.split("  #")[0].strip())
        for folder in ("fastaug", "tools", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
        for line in file.read_text().splitlines()
        if forbidden.search(line) or (re.search(r"\btorch\.load\(", line) and "weights_only=True" not in line)
    }
    assert not found


def test_a_file_put_into_a_checkpoint_is_vouched_for(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    for text in (b"one", b"another"):  # the second time in place of the first
        attach(path, "note.json", text)
        assert verify(path) is None
        assert (path / "note.json").read_bytes() == text
    (path / "note.json").write_bytes(b"a nother")
    assert "note.json" in str(verify(path))


def test_a_kill_while_a_file_is_put_in_leaves_a_sound_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = saved(tmp_path, 1)
    real, left = checkpoint.write_atomically, [0]

    def killed(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    for left[0] in (0, 1, 2):  # writes before the kill
        monkeypatch.undo()
        attach(path, "note.json", b"one")
        monkeypatch.setattr(checkpoint, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            attach(path, "note.json", b"two")
        assert verify(path) is None
        assert load(path).state["position"] == 64


def test_a_full_disk_while_a_file_is_put_in_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = saved(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(StorageError, match=r"note\.json: cannot be written.*free space"):
        attach(path, "note.json", b"one")

"""Checkpoints written while training goes on: what they hold, how errors and ends of a run meet them; whole runs."""

import json
import os
import shutil
import signal
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.commands import same_run
from fastaug.errors import NonFiniteError, StorageError
from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint, table_files
from fastaug.training.checkpoint_writer import CheckpointWriter, HostCopy, Snapshot
from fastaug.training.listeners import Listeners
from fastaug.training.table_files import Table
from fastaug.training.worker import attempt, run

PATIENCE = 60  # seconds, after which a test gives up


def snapshot(step: int, weights: torch.Tensor, table: Table | None = None, **state: Any) -> Snapshot:
    tables = {} if table is None else {"x": table}
    return Snapshot(step, None, {"model": {"w": weights}}, {"meta": {"learned": {}}, **state}, tables, {}, {})


def save_in(folder: Path, taken: Snapshot) -> None:
    checkpoint.save(folder, taken.step, taken.weights, taken.state, taken.tables, taken.texts)


# ---- the copy ----


def test_a_copy_is_what_was_copied_and_takes_its_memory_again() -> None:
    host, kept = HostCopy(), []
    for round_ in range(3):
        network = torch.nn.BatchNorm2d(3)
        values = {
            "weights": network.state_dict(),
            "view": torch.arange(12.0).view(3, 4).t() + round_,
            "one": torch.ones(3 if round_ < 2 else 5, dtype=torch.int16),
            "table": Table({"rows": torch.full((4, 2), float(round_))}, torch.zeros(4, dtype=torch.bool)),
            "list": [{"lr": 0.1}, (1, None), {3: "truncated"}],
        }
        taken = host.take(values)
        host.wait()
        assert isinstance(taken["table"], Table)
        assert isinstance(taken["weights"], OrderedDict)
        assert taken["weights"]._metadata == network.state_dict()._metadata  # type: ignore[attr-defined]
        assert taken["list"] == values["list"]
        assert taken["list"][0] is not values["list"][0]  # type: ignore[index]
        pairs = [(taken[name], values[name]) for name in ("view", "one")]
        pairs += [(taken["table"].rows["rows"], values["table"].rows["rows"])]  # type: ignore[attr-defined]
        pairs += [(taken["weights"][name], value) for name, value in network.state_dict().items()]
        for copied, original in pairs:
            assert (copied.dtype, copied.stride()) == (original.dtype, original.stride())  # type: ignore[attr-defined]
            assert torch.equal(copied, original)  # type: ignore[arg-type]
            assert copied.data_ptr() != original.data_ptr()  # type: ignore[attr-defined]
        kept.append([copied.data_ptr() for copied, _ in pairs])
    assert kept[0] == kept[1]
    assert [first == third for first, third in zip(kept[0], kept[2], strict=True)].count(False) <= 1


# ---- the writer ----


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_is_of_the_moment_it_was_saved_at(tmp_path: Path, *, asynchronous: bool) -> None:
    weights, log, go_on = torch.zeros(1000), [0], threading.Event()

    def write(taken: Snapshot) -> None:
        if asynchronous:
            assert go_on.wait(PATIENCE)
        save_in(tmp_path, taken)

    with CheckpointWriter(asynchronous=asynchronous) as writer:
        weights += 1
        writer.save(snapshot(1, weights, log=log, optimizer={"state": {0: {"momentum": weights}}}), write)
        weights += 1  # training goes on
        log.append(2)
        go_on.set()
        writer.finish()
    loaded = checkpoint.load(tmp_path / "step-00000001")
    assert loaded.weights["model"]["w"].unique().tolist() == [1]
    assert loaded.state["optimizer"]["state"][0]["momentum"].unique().tolist() == [1]
    assert loaded.state["log"] == [0]


def test_the_next_one_waits() -> None:
    weights, asked, found = torch.zeros(10), threading.Event(), []

    def write(taken: Snapshot) -> None:
        assert asked.wait(PATIENCE)
        time.sleep(0.1)  # long enough for a second copy, if it did not wait, to be in the memory of this one
        found.append(taken.weights["model"]["w"].unique().tolist())

    with CheckpointWriter(asynchronous=True) as writer:
        writer.save(snapshot(1, weights), write)
        weights += 1
        asked.set()
        writer.save(snapshot(2, weights), write)
        writer.finish()
        memory = weakref.ref(writer._host._buffers[0])
        writer.release()
        assert memory() is None  # behind the last one nothing holds the copy
    assert found == [[0], [1]]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_rows_that_change_while_a_table_is_written_are_in_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, asynchronous: bool
) -> None:
    monkeypatch.setattr(table_files, "WHOLE", 0)
    table = Table({"parts.x": torch.zeros(100, 2)}, torch.zeros(100, dtype=torch.bool))
    expected, anew = [], []
    with CheckpointWriter(asynchronous=asynchronous) as writer:
        for step, ids in enumerate([[], [3, 9], [10], list(range(20, 80)), [1], [2]], start=1):
            table.rows["parts.x"][ids] = step  # from the second one on while the checkpoint before may be on its way
            table.changed[ids] = True
            expected.append(table.rows["parts.x"].clone())
            writer.save(snapshot(step, torch.zeros(1), table), partial(save_in, tmp_path))
        writer.finish()
    for step, rows in enumerate(expected, start=1):
        state = checkpoint.load(tmp_path / checkpoint.name_of(step)).state
        assert torch.equal(state["meta"]["learned"]["parts.x"], rows), step
        anew.append(not len(state["changed_rows"]["x"]))
    assert anew == [True, False, False, True, False, False]
    assert table.changed.nonzero()[:, 0].tolist() == [1, 2]


def fail(_: Snapshot) -> None:
    raise StorageError("no space")


def test_an_error_is_raised_in_the_thread_of_training_and_no_changed_row_is_forgotten() -> None:
    table = Table({"parts.x": torch.zeros(9, 2)}, torch.arange(9) == 4)
    with CheckpointWriter(asynchronous=True) as writer:
        writer.save(snapshot(1, torch.zeros(1), table), fail)
        table.changed[7] = True
        with pytest.raises(StorageError, match="no space"):
            writer.finish()
        assert table.changed.nonzero()[:, 0].tolist() == [4, 7]
        writer.save(snapshot(2, torch.zeros(1), table), fail)
        with pytest.raises(StorageError, match="no space"):
            writer.save(snapshot(3, torch.zeros(1), table), fail)
        writer.save(snapshot(4, torch.zeros(1), table), fail)
        with pytest.raises(StorageError, match="no space"):
            updates(writer)


def updates(writer: CheckpointWriter) -> None:
    """Between updates an error is raised as soon as it is known."""
    given_up = time.monotonic() + PATIENCE
    while time.monotonic() < given_up:
        writer.check()
        time.sleep(0.001)


def test_an_error_is_raised_where_a_run_is_left_and_beside_another_it_is_a_note() -> None:
    with pytest.raises(StorageError, match="no space"):
        left_with(None)
    with pytest.raises(NonFiniteError, match="NaN") as raised:
        left_with(NonFiniteError("NaN"))
    assert raised.value.__notes__ == ["the checkpoint on its way was not written: no space"]


def left_with(error: Exception | None) -> None:
    with CheckpointWriter(asynchronous=True) as writer:
        writer.save(snapshot(1, torch.zeros(1)), fail)
        if error is not None:
            raise error


def test_what_is_on_its_way_is_finished_whatever_ends_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C again and again does not leave a thread that writes into a folder whose lock is given up."""
    leaves = threading.Event()

    def write(taken: Snapshot) -> None:
        assert leaves.wait(PATIENCE)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        save_in(tmp_path, taken)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind & ignores it
    try:
        with suppress(KeyboardInterrupt), CheckpointWriter(asynchronous=True) as writer:
            writer.save(snapshot(1, torch.ones(10)), write)
            leaves.set()
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, before)
    assert checkpoint.latest(tmp_path) == (tmp_path / "step-00000001", [])
    assert capfd.readouterr().err.count("waiting for the checkpoint on its way; a kill is safe") == 1


# ---- whole runs ----

RECIPE = """
data: {img_size: 28, threads: 1, test_fraction: 0.2, meta_fraction: 0.2}
model: {name: test_resnet, ema: true, ema_decay: 0.9}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 2, batch_size: 8}
eval: {every: 0}
augment: {shift: 0.1, cutmix: 1.0}
meta: {learn: [weights, labels], every: 1, batch_size: 4, table_optimizer: rmsprop}
run: {log_every: 1, log_ids: true, log_losses: true, checkpoint_every: 2, checkpoint_async: true}
"""
RUNS = ("waits", "goes_on")


@pytest.fixture
def words(tmp_path: Path, jpeg_folder: Callable[..., Path]) -> Iterator[list[str]]:
    """The recipe on 40 photographs, 3 updates an epoch."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    yield [f"data.root={jpeg_folder(classes=2, images=20)}"]
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(tmp_path: Path, words: list[str], name: str) -> int:
    return run(read_recipe(tmp_path / "recipe.yaml", [*words, f"run.dir={tmp_path / name}"]))


def test_a_run_that_is_stopped_and_goes_on_equals_one_that_waits(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "WHOLE", 0)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(tmp_path, [*words, "run.checkpoint_async=false"], "waits") == 0
    run_dir = tmp_path / "goes_on"
    stopped = attempt(read_recipe(tmp_path / "recipe.yaml", [*words, f"run.dir={run_dir}"]), Listeners([stop]))
    assert stopped.code == 75
    assert checkpoint.latest(run_dir / "checkpoints") == (run_dir / "checkpoints" / "step-00000005", [])
    assert json.loads((run_dir / "status.json").read_text())["step"] == 5
    shutil.rmtree(run_dir / "checkpoints" / "step-00000005")  # as if killed behind the one before
    assert train(tmp_path, words, "goes_on") == 0
    assert same_run.main([str(tmp_path / "waits"), str(run_dir)]) == 0
    for step in (2, 4, 6):
        states = [checkpoint.load(tmp_path / n / "checkpoints" / checkpoint.name_of(step)).state for n in RUNS]
        assert_equal(states[1]["meta"], states[0]["meta"])
        assert_equal(states[1]["optimizer"], states[0]["optimizer"])
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in RUNS]
    assert files[0] == files[1]


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_equal(found[name], expected[name])
    elif isinstance(found, (list, tuple)):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


FULL_DISK = """
import os, resource, signal, sys, threading
from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint
from fastaug.training.listeners import Listeners
from fastaug.training.worker import attempt
failed, save, stops = threading.Event(), checkpoint.save, int(sys.argv[2])
def told(*given):
    try:
        save(*given)
    finally:
        failed.set()
def hear(line):
    if line["step"] == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if line["step"] == stops:
        os.kill(os.getpid(), signal.SIGTERM)
    if line["step"] == 5:
        assert failed.wait(60)
checkpoint.save = told
sys.exit(attempt(read_recipe(sys.argv[3], sys.argv[4:]), Listeners([hear])).code)
"""


@pytest.mark.parametrize(("stops", "saved"), [(0, 4), (2, 2)], ids=["training", "stopped by a signal"])
def test_a_full_disk_ends_a_run_with_the_code_of_storage_before_the_next_save(
    tmp_path: Path, words: list[str], in_processes: Callable[..., str], stops: int, saved: int
) -> None:
    keys = [*words, "meta.learn=[]", "train.epochs=3", "run.checkpoint_every=4", f"run.dir={tmp_path / 'run'}"]
    said = in_processes(1, "-c", FULL_DISK, stops, tmp_path / "recipe.yaml", *keys, code=5)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["code"] == 5, (status, said)
    assert f"step-{saved:08d}: cannot be saved" in status["reason"], (status, said)
    assert "free space or choose another run.dir" in status["reason"]
    assert status["step"] < saved + 4, status  # known between two saves
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


TWO = """
import os, signal, sys, time
from pathlib import Path
from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint, loop
from fastaug.training.listeners import Listeners
from fastaug.training.worker import attempt
seen, write, save = Path(sys.argv[2]), checkpoint.save, loop.save
def slow(folder, step, *rest):
    given_up = time.monotonic() + 2
    while step == 2 and not seen.exists() and time.monotonic() < given_up:
        time.sleep(0.02)
    write(folder, step, *rest)
def watched(trainer):
    if trainer.progress.step == 3 and not trainer.accelerator.is_main_process:
        seen.write_text(str(checkpoint.steps_of(trainer.folder.checkpoints)))
    save(trainer)
def stop(line):
    if line["step"] == 3:
        os.kill(os.getpid(), signal.SIGTERM)
checkpoint.save, loop.save = slow, watched
sys.exit(attempt(read_recipe(sys.argv[3], sys.argv[4:]), Listeners([stop])).code)
"""


def test_at_a_stop_other_processes_wait_for_one_write_at_a_time(
    tmp_path: Path, words: list[str], in_processes: Callable[..., str]
) -> None:
    """None begins the last save before the checkpoint on its way is there: run.peer_timeout is for one."""
    given = [tmp_path / "recipe.yaml", *words, "meta.learn=[]", f"run.dir={tmp_path / 'run'}"]
    in_processes(2, "-c", TWO, tmp_path / "seen", *given, code=75)
    assert (tmp_path / "seen").read_text() == "[2]"
    assert checkpoint.steps_of(tmp_path / "run" / "checkpoints") == [2, 3]

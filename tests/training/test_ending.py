"""How a process ends: which code and words stand for which error, by where it comes from, and what is kept of it."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastaug.errors import DataError, FastaugError, PeerError, RecipeError, Stopped, StorageError
from fastaug.recipe.schema import Data, Recipe, Run
from fastaug.training.ending import Ending, translated
from fastaug.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
GLOO = "[/builder/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"


def failed(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def meaning(error: Exception, trainer: Any = None) -> tuple[type[Exception], int]:
    found = translated(error, Path("/runs/one"), trainer)
    return type(found), found.code if isinstance(found, FastaugError) else 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (failed(errno.ENOSPC, "/elsewhere/cache.npz"), StorageError),
        (failed(errno.EDQUOT, "/elsewhere/cache.npz"), StorageError),
        (failed(errno.EFBIG, "/elsewhere/cache.npz"), StorageError),
        (failed(errno.EACCES, "/runs/one/batch.png"), StorageError),
        (failed(errno.EACCES, "/runs/one-more/batch.png"), PermissionError),
        (RuntimeError("Application timeout caused pair closure"), PeerError),
        (failed(errno.ENOENT, "/images/igloo/3.jpg"), FileNotFoundError),
        (failed(errno.EMFILE, "/images/3.jpg"), OSError),
        (ConnectionResetError(errno.ECONNRESET, "Connection closed by peer"), ConnectionResetError),
        (DataError("/images/igloo/gloo/transport/3.jpg cannot be listed"), DataError),
        (RuntimeError("cannot decode [/images/igloo/3.jpg]"), RuntimeError),
        (ValueError(GLOO), ValueError),
        (RuntimeError(GLOO), PeerError),
        (
            RuntimeError("Gloo connectFullMesh failed with [/p/gloo/transport/tcp/pair.h:311] Connect timeout"),
            PeerError,
        ),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), PeerError),
        (torch.distributed.DistNetworkError("no answer"), PeerError),
        (MemoryError(), FastaugError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), FastaugError),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), ValueError),
    ],
)
def test_an_error_is_what_its_type_and_origin_say(error: Exception, kind: type[Exception]) -> None:
    assert meaning(error)[0] is kind


def test_only_a_lack_of_space_asks_for_space() -> None:
    full = translated(failed(errno.ENOSPC, "/elsewhere/x"), Path("/runs/one"))
    assert "free space or choose another run.dir" in str(full)
    refused = translated(failed(errno.EACCES, "/runs/one/x"), Path("/runs/one"))
    assert "free space" not in str(refused)
    assert "check the disk and its permissions" in str(refused)


def test_a_file_below_the_data_root_is_of_the_data() -> None:
    trainer = SimpleNamespace(parts=SimpleNamespace(index=SimpleNamespace(root=Path("/images"))))
    assert meaning(failed(errno.EIO, "/images/a/3.jpg"), trainer) == (DataError, 3)
    assert meaning(failed(errno.EIO, os.fsencode("/images/a/3.jpg")), trainer) == (DataError, 3)  # type: ignore[arg-type]


def test_an_assertion_on_the_device_is_an_error_of_ours() -> None:
    assert meaning(RuntimeError("CUDA error: device-side assert triggered")) == (FastaugError, 1)


def opened(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.open(Recipe(run=Run(dir=str(path)), data=Data(root="x")))
    return folder


def ended(folder: RunFolder, error: BaseException) -> Ending:
    ending = Ending(folder)
    with ending:
        raise error
    return ending


def status(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return read


def test_every_error_leaves_its_traceback_in_the_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for error, code in ((DataError("torn"), 3), (failed(errno.ENOSPC, "/x"), 5), (KeyError("sum"), 1)):
        assert ended(opened(tmp_path), error).code == status(tmp_path)["code"] == code
    log = (tmp_path / "errors.log").read_text()
    assert log.count("Traceback (most recent call last):") == 3
    assert [line.split(", code ")[1][0] for line in log.splitlines() if ", code " in line] == ["3", "5", "1"]
    assert "No space left on device" in log
    said = "".join(capfd.readouterr())
    assert said.count("Traceback") == 1  # an internal error is shown too: nothing in its message tells what to do
    assert "stopped with code 3: torn" in said


def test_a_stop_leaves_no_traceback(tmp_path: Path) -> None:
    assert ended(opened(tmp_path), Stopped("signal SIGTERM")).code == 75
    assert ended(opened(tmp_path), KeyboardInterrupt()).code == 1
    assert not (tmp_path / "errors.log").exists()


def test_a_second_ctrl_c_tells_what_was_saved_and_what_was_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ended(opened(tmp_path), KeyboardInterrupt()).code == 1
    assert status(tmp_path)["reason"] == "interrupted; no checkpoint was written"
    (tmp_path / "checkpoints" / "step-00000007").mkdir()
    error = KeyboardInterrupt()
    error.add_note("the checkpoint on its way was not written: no space")
    ended(opened(tmp_path), error)
    reason = "interrupted; the newest checkpoint is of update 7; the checkpoint on its way was not written: no space"
    assert status(tmp_path)["reason"] == reason
    assert f"stopped with code 1: {reason}" in capfd.readouterr().out


def test_a_name_that_is_no_text_can_be_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(opened(tmp_path), DataError("class caf\udce9 is empty")).code == 3
    assert "class caf\\udce9 is empty" in capfd.readouterr().out
    assert "caf\\udce9" in (tmp_path / "errors.log").read_text()
    assert status(tmp_path)["reason"] == "class caf\udce9 is empty"


def test_a_finished_run_stays_finished_and_a_started_one_where_it_was(tmp_path: Path) -> None:
    done = {"code": 0, "reason": "done", "step": 12}
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)
    (tmp_path / "status.json").write_text(json.dumps(done))
    (tmp_path / "result.json").write_text("{}")
    assert ended(opened(tmp_path), DataError("torn")).code == 3
    assert status(tmp_path) == done
    assert "torn" in (tmp_path / "errors.log").read_text()
    (tmp_path / "result.json").unlink()
    assert ended(opened(tmp_path), DataError("torn")).code == 3
    assert status(tmp_path) == {"code": 3, "reason": "torn", "step": 12}


def test_a_refused_start_writes_nothing_into_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(tmp_path).close()
    (tmp_path / "result.json").write_text("{}")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    ending = Ending(folder := RunFolder(tmp_path))
    with ending:
        folder.open(Recipe(run=Run(dir=str(tmp_path), seed=4), data=Data(root="x")))
    assert ending.code == RecipeError.code
    assert "run.seed: is 4 but this run was started with 0" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


LAUNCHED = """
import sys
import time
from fastaug.errors import DataError
from fastaug.training.ending import Ending
from fastaug.training.run_folder import RunFolder
ending = Ending(RunFolder(sys.argv[1]))
with ending:
    raise DataError("the images are torn; repair them")
sys.exit(ending.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.accelerate_cli"])
def test_a_launcher_s_last_words_are_explained(tmp_path: Path, launcher: str) -> None:
    """torchrun's own summary shows the reason; accelerate launch cannot, but has an option to say nothing."""
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED)
    words = ["--nproc-per-node", "1"] if "torch" in launcher else ["launch", "--num_processes", "1", "--quiet"]
    command = [sys.executable, "-m", launcher, *words, str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "stopped with code 3: the images are torn; repair them" in done.stdout
    assert "only says that a process ended with this code" in done.stdout
    if "torch" in launcher:
        assert "exitcode  : 3" in done.stderr
        assert "traceback : the images are torn; repair them" in done.stderr
    else:
        assert "accelerate launch --quiet leaves it out" in done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_start_that_waits_for_others_is_ended_by_a_signal_at_once(tmp_path: Path, name: str) -> None:
    """The main process of two, whose peer never comes: it waits inside of torch, where no handler of Python runs."""
    (tmp_path / "r.yaml").write_text("data: {root: nowhere}\nmodel: {name: test_resnet}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    waits = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(ROOT / "fastaug/train.py"), str(tmp_path / "r.yaml"), f"run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, env=os.environ | waits, stdout=subprocess.PIPE, text=True) as process:
        try:
            while not (tmp_path / "run" / "status.json").exists():
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(1)  # on its way into torch, or there
            process.send_signal(getattr(signal, name))
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    reason = f"signal {name} before the first update; the same command starts again"
    assert process.returncode == 75
    assert said == f"stopped with code 75: {reason}\n"
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"code": 75, "reason": reason, "step": 0}

"""The end of a process: an exception becomes an exit code, one message, status.json and a traceback in errors.log."""

import json
import os
import re
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastaug.console import Console
from fastaug.distributed import Peers
from fastaug.errors import (
    EXIT_DONE,
    NO_SPACE,
    DataError,
    FastaugError,
    PeerError,
    Stopped,
    StorageError,
    remedy_of,
)
from fastaug.training.build import Trainer
from fastaug.training.checkpoint import steps_of
from fastaug.training.run_folder import RunFolder
from fastaug.training.signals import launcher_name

# Where gloo says in its own source that an exchange failed, or what it says without a place; its errors have no type.
_OF_GLOO = re.compile(
    r"\[[^\]\s]*[/\\]gloo[/\\](?:transport|common)[/\\][^\]\s]*\.(?:cc|h):\d+\]"
    r"|Application timeout caused pair closure$"
    r"|Gloo connectFullMesh failed with \[[^\]\s]*[/\\]gloo[/\\]transport[/\\]"
)


class Ending:
    """Context manager that turns every exception into an exit code and tells it: screen, status.json, errors.log."""

    def __init__(self, folder: RunFolder, *, tells: bool = True) -> None:
        """`tells`: on the screen; whoever raises `error` again needs no second message."""
        self._folder = folder
        self._tells = tells
        self.trainer: Trainer | None = None
        self.peers: Peers | None = None
        self.code = EXIT_DONE
        self.figures: dict[str, Any] = {}  # of the held-out splits, of a run that came to its end
        self.error: BaseException | None = None  # what ended the run, as it is meant
        self.interrupted = False  # whether Ctrl-C did

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        reason = "done"
        if isinstance(error, KeyboardInterrupt):  # the second Ctrl-C
            self.code, reason, self.error = 1, self._interrupted(error), error
            if self._tells:
                Console(True).print(f"stopped with code {self.code}: {reason}")
        elif error is not None:
            if not isinstance(error, Exception):
                self._folder.close()
                return False
            reason = self._judge(error)
        elif self.trainer is not None and self.trainer.early is not None:
            reason = f"done, {self.trainer.early}"
        self._write_status(reason)
        self._folder.close()
        return True

    def leave(self, reason: str) -> NoReturn:
        """Ends the process at once, from any thread: of a start, which has nothing to save."""
        self.code = Stopped.code
        reason = f"{reason} before the first update; the same command starts again"
        Console(True).print(f"stopped with code {self.code}: {reason}")
        _tell_launcher(reason)
        self._write_status(reason)
        os._exit(self.code)

    def _interrupted(self, error: KeyboardInterrupt) -> str:
        """What is said of a second Ctrl-C: what the same command goes on from, and what else went wrong meanwhile."""
        try:
            saved = max(steps_of(self._folder.checkpoints), default=0)
            found = f"the newest checkpoint is of update {saved}" if saved else "no checkpoint was written"
        except StorageError as failure:
            found = str(failure)
        return "; ".join([f"interrupted; {found}", *getattr(error, "__notes__", [])])

    def _judge(self, error: Exception) -> str:
        """Sets the code, tells the reason and keeps the traceback; gives the reason."""
        meant = translated(error, self._folder.path, self.trainer)
        if isinstance(meant, PeerError) and self.peers is not None and (silent := self.peers.silent()):
            meant = PeerError(f"{meant}; {silent}")
        self.code = meant.code if isinstance(meant, FastaugError) else 1
        reason = str(meant) or type(meant).__name__
        if meant is not error:
            meant.__cause__ = error
        self.error = meant
        if not isinstance(meant, Stopped):
            self._log(error, reason)
        if self._tells:
            self._tell(error, reason)
        _tell_launcher(reason)
        return reason

    def _tell(self, error: Exception, reason: str) -> None:
        """Code and reason on the screen; the traceback of an internal error."""
        if not isinstance(self.error, FastaugError):
            traceback.print_exception(error)
        console = Console(True)
        console.print(f"stopped with code {self.code}: {reason}")
        if launcher := launcher_name(os.getppid()):
            hint = "; accelerate launch --quiet leaves it out" if launcher == "accelerate" else ""
            console.print(f"(what {launcher} prints below only says that a process ended with this code{hint})")

    def _log(self, error: Exception, reason: str) -> None:
        """Adds the traceback to errors.log of a folder that is this run's."""
        rank = os.environ.get("RANK", "0")
        if not (self._folder.locked or rank != "0"):
            return
        step = self.trainer.progress.step if self.trainer else 0
        head = f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {rank}, update {step}, code {self.code}: {reason}\n"
        text = head + "".join(traceback.format_exception(error)) + "\n"
        try:
            with open(self._folder.path / "errors.log", "ab") as file:
                file.write(text.encode(errors="backslashreplace"))
        except OSError as failure:
            Console(True).print(f"errors.log cannot be written ({failure}); it would have said:\n{text}")

    def _write_status(self, reason: str) -> None:
        """status.json of the main process, status-<rank>.json of another; a finished run stays finished."""
        rank, folder = os.environ.get("RANK", "0"), self._folder
        if folder.finished and self.code != EXIT_DONE:
            Console(True).print(f"{folder.path}: status.json still tells of the finished run")
        elif folder.locked or (rank != "0" and self.code != EXIT_DONE):
            step = self.trainer.progress.step if self.trainer else 0
            try:
                name = "status.json" if folder.locked else f"status-{rank}.json"
                folder.write_status(self.code, reason, step or folder.step, name)
            except (OSError, StorageError) as failure:
                Console(True).print(f"status.json cannot be written: {failure}")


def _tell_launcher(reason: str) -> None:
    """Leaves the reason where torchrun's own summary of a failed job takes it from."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        message = {"message": reason, "extraInfo": {"timestamp": str(int(time.time()))}}
        try:
            Path(file).write_text(json.dumps({"message": message}))
        except OSError as failure:
            Console(True).print(f"{file}, which the launcher reads, cannot be written: {failure}")


def translated(error: Exception, run_dir: Path, trainer: Trainer | None = None) -> Exception:
    """`error`, or what it means when a library raised it: by its type and where it comes from, not by its words."""
    text = str(error) or type(error).__name__
    if isinstance(error, FastaugError):
        return error
    short = isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate" in text
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or short:
        return FastaugError(f"out of memory: {text.splitlines()[0]}; raise train.accumulate or lower data.img_size")
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and _OF_GLOO.match(text)):
        return PeerError(f"another process of the job is gone or does not answer: {text.splitlines()[0]}")
    if isinstance(error, OSError):
        return _of_a_file(error, run_dir, trainer)
    if isinstance(error, RuntimeError) and "device-side assert" in text:
        return _of_a_device()
    return error


def _of_a_file(error: OSError, run_dir: Path, trainer: Trainer | None) -> Exception:
    """A failed call of the operating system by where it was: no space, in the run folder, below data.root."""
    index = None if trainer is None else trainer.parts.index
    if error.errno in NO_SPACE or _below(error.filename, run_dir):
        return StorageError(f"a file cannot be written: {error}; {remedy_of(error)}")
    if index is not None and _below(error.filename, index.root):
        return DataError(f"data.root: a file cannot be read: {error}; repair it or change data.root")
    return error


def _below(name: object, folder: Path) -> bool:
    if not isinstance(name, (str, bytes)):
        return False
    return Path(os.path.abspath(os.fsdecode(name))).is_relative_to(os.path.abspath(folder))


def _of_a_device() -> FastaugError:
    """An assertion that failed on the device; the loss is not watched by one."""
    return FastaugError(
        "an assertion failed on the device, most likely an index out of range; start again with CUDA_LAUNCH_BLOCKING=1 "
        "to see which, and report it"
    )

"""The run folder: recipe, metrics, status and result, written so that a kill at any moment leaves each one whole."""

import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastaug.atomic_files import open_regular, remove_leftovers, write_atomically
from fastaug.errors import EXIT_DONE, RecipeError, StorageError, remedy_of
from fastaug.recipe.reading import as_begun, differences, read_stored, to_yaml
from fastaug.recipe.schema import RESUMABLE, SCHEMA, Recipe
from fastaug.training.checkpoint import steps_of


def _stored_recipe(path: Path) -> tuple[Recipe, int]:
    """The recipe that a run was started with, as it was meant then, and the schema under which it was."""
    try:
        return read_stored(path)
    except RecipeError as error:
        remedy = "continue this run with the version that wrote it, or choose another run.dir"
        raise RecipeError([f"{path}: {problem}; {remedy}" for problem in error.problems]) from error


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Makes a StorageError of what goes wrong inside while `path` of the run folder is written or read."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"run.dir: {path} cannot be written: {error.strerror or error}; {remedy_of(error)}"
        ) from error


def _locked(path: Path) -> int:
    """The descriptor of the lock file, locked until it is closed; BlockingIOError when another process holds it.

    Opened without following a link or emptying anything: a stranger's folder may hold one that leads elsewhere.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


class RunFolder:
    """One run's files. Only the main process writes; it holds a lock, so a second start of the run is refused.

    `step`: the update that its files are at. `finished`: whether the run in it has ended with its result. `hear` is
    called with every line of metrics.jsonl once it is written.
    """

    def __init__(self, path: str | Path, hear: Callable[[str], None] = lambda _: None) -> None:
        self.path = Path(path)
        self._hear = hear
        self.step, self.finished = 0, False
        self._lock: int | None = None
        self.notes: dict[str, Any] = {}  # further entries of status.json
        self.replayed: frozenset[tuple[str, int]] = frozenset()  # events and steps of metrics.jsonl that were cut off
        self._lines: dict[str, int] = {}  # of the logs that this process writes

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def as_begun(self, recipe: Recipe) -> Recipe:
        """`recipe` with what a version that lacked some of its keys did, if the run in this folder was begun by it."""
        return as_begun(recipe, _stored_recipe(self.path / "recipe.yaml")[1]) if self._begun() else recipe

    def _begun(self) -> bool:
        """Whether there is a checkpoint or a result of the stored recipe."""
        made = bool(steps_of(self.checkpoints)) or (self.path / "result.json").exists()
        return made and (self.path / "recipe.yaml").exists()

    def open(self, recipe: Recipe) -> Recipe:
        """Creates and locks the folder; the recipe that the run goes on with, see `as_begun`.

        RecipeError when another recipe has a checkpoint in it, or one that this version cannot read; StorageError when
        it is in use, or holds links, pipes or folders in place of its files. A refused folder is left as it was.
        """
        try:
            with _written(self.path):
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                self._lock = self._take_lock()
                self._check_files()
                remove_leftovers(self.path)
                for path in self.path.glob("status-*.json"):  # of the processes of an earlier start
                    path.unlink()
            recipe = self._take_recipe(recipe)
        except (RecipeError, StorageError):
            self.close()
            raise
        self.finished = self._status().get("code") == EXIT_DONE and (self.path / "result.json").exists()
        return recipe

    def _take_lock(self) -> int:
        try:
            return _locked(self.path / ".lock")
        except BlockingIOError:
            raise StorageError(
                f"run.dir: {self.path} is in use by another process; wait for it or choose another run.dir"
            ) from None

    def _check_files(self) -> None:
        """StorageError unless what a run writes here are plain files: a pipe would hang it, a link lead elsewhere."""
        for path in self.path.iterdir():
            ours = path.name in _FILES or _is_log(path.name)
            if ours and not stat.S_ISREG(path.lstat().st_mode):
                raise StorageError(
                    f"run.dir: {path} is a link, a pipe or a folder, and a run writes a file of that name; remove it, "
                    "or choose another run.dir"
                )

    def _take_recipe(self, recipe: Recipe) -> Recipe:
        """Stores the recipe; a run that has begun keeps the one that it was started with."""
        self.step, schema = max(steps_of(self.checkpoints), default=0), SCHEMA
        stored = self.path / "recipe.yaml"
        if self._begun():
            before, schema = _stored_recipe(stored)
            recipe = as_begun(recipe, schema)
            changed = differences(before, recipe)
            problems = [
                f"{key}: is {new!r} but this run was started with {old!r}; set it back, or choose another run.dir"
                for key, (old, new) in changed.items()
                if key not in RESUMABLE
            ]
            if problems:
                raise RecipeError(problems)
        with _written(stored):
            write_atomically(stored, to_yaml(recipe, schema).encode())
        return recipe

    @property
    def locked(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def close(self) -> None:
        """Gives up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, name: str, data: bytes) -> None:
        """Replaces the file `name`."""
        with _written(self.path / name):
            write_atomically(self.path / name, data)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Replaces the JSON file `name`."""
        self.write(name, (json.dumps(values, indent=2) + "\n").encode())

    def write_status(self, code: int | None, reason: str, step: int, name: str = "status.json") -> None:
        """How the run stands; `code` is the exit code, or None while it runs."""
        self.write_json(name, {"code": code, "reason": reason, "step": step, **self.notes})

    def _status(self) -> dict[str, Any]:
        """What status.json says; nothing when it is absent or broken."""
        try:
            values = json.loads((self.path / "status.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}

    # ---- logs: a JSON object a line ----

    def append(self, name: str, values: dict[str, Any]) -> None:
        """Adds one line to the JSON-lines file `name`."""
        text = json.dumps(values)
        with _written(self.path / name), open(self.path / name, "a") as file:
            file.write(text + "\n")
        self._lines[name] = self._lines.get(name, 0) + 1
        if name == "metrics.jsonl":
            self._hear(text)

    def lines(self) -> dict[str, int]:
        """Lines of each log that this process writes: what a checkpoint remembers to continue them."""
        return {name: self._lines.get(name, 0) for name in _OWN_LOGS}

    def sync_logs(self) -> None:
        """Makes the logs durable that this process writes, before a checkpoint counts on their lines."""
        for path in (self.path / name for name in _OWN_LOGS):
            if path.exists():
                with _written(path), open_regular(path) as file:
                    os.fsync(file.fileno())

    def cut_after(self, step: int, lines: dict[str, int] | None = None) -> list[str]:
        """Cuts every log, of all processes, back to the state at `step`; names those with broken lines.

        What a killed run wrote behind its state goes, and so does every line that is no JSON object with a step.
        `lines`: of that state, None for checkpoints that did not count them.
        """
        logs = sorted(path for path in self.path.iterdir() if _is_log(path.name))
        return [path.name for path in logs if self._cut(path, step, (lines or {}).get(path.name))]

    def _cut(self, path: Path, step: int, lines: int | None) -> bool:
        with _written(path), open_regular(path) as file:
            written = file.read()
        found = [line for line in written.split(b"\n") if line]
        kept = [line for line in found if (at := _step_of(line)) is not None and at <= step][:lines]
        if path.name == "metrics.jsonl":
            self.replayed = _events(found) - _events(kept)
        data = b"".join(line + b"\n" for line in kept)
        if data != written:
            self.write(path.name, data)
        self._lines[path.name] = len(kept)
        return any(_step_of(line) is None for line in found[:-1])  # the last one may be what a kill left half-written


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log as JSON objects; a last one that a kill cut off does not count."""
    lines = file.read_text().splitlines()
    found = [json.loads(line) for line in lines[:-1]]
    try:
        return [*found, json.loads(lines[-1])] if lines else []
    except ValueError:
        return found


_OWN_LOGS = ("metrics.jsonl", "skipped.jsonl")
_STARTS = "starts.jsonl"  # see starts.py; cut by update alone, as a checkpoint comes behind the line of its start
_FILES = (
    *(
        "recipe.yaml",
        "status.json",
        "result.json",
        "classes.json",
        "samples.csv",
        "samples.npz",
        "batch.png",
        "errors.log",
    ),
    *("policy.json", "policy.py", "summary.csv", "trackers.json"),
)


def _is_log(name: str) -> bool:
    return name in (*_OWN_LOGS, _STARTS) or re.fullmatch(r"ids-[0-9]+\.jsonl", name) is not None


def _values_of(line: bytes) -> dict[str, Any]:
    """The JSON object of a line of a log; empty when it is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _step_of(line: bytes) -> int | None:
    """The step of a line of a log; None when it is no JSON object with one."""
    step = _values_of(line).get("step")
    return step if type(step) is int else None


def _events(lines: list[bytes]) -> frozenset[tuple[str, int]]:
    """The events of sound lines, each with its step."""
    sound = [line for line in lines if _step_of(line) is not None]
    return frozenset((str(values.get("event")), values["step"]) for values in map(_values_of, sound))

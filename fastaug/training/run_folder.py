"""The run folder: recipe, metrics, status and result, written so that a kill at any moment leaves each one whole."""

import fcntl
import json
from pathlib import Path
from typing import IO, Any

from fastaug.atomic_files import write_atomically
from fastaug.errors import RecipeError, StorageError
from fastaug.recipe.reading import as_begun, differences, read_stored, to_yaml
from fastaug.recipe.schema import RESUMABLE, SCHEMA, Recipe


def _stored_recipe(path: Path) -> tuple[Recipe, int]:
    """The recipe that a run was started with, as it was meant then, and the schema under which it was."""
    try:
        return read_stored(path)
    except RecipeError as error:
        remedy = "continue this run with the version that wrote it, or choose another run.dir"
        raise RecipeError([f"{path}: {problem}; {remedy}" for problem in error.problems]) from error


class RunFolder:
    """One run's files. Only the main process writes; it holds a lock, so a second start of the run is refused."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def as_begun(self, recipe: Recipe) -> Recipe:
        """`recipe` with what a version that lacked some of its keys did, if the run in this folder was begun by it."""
        stored = self.path / "recipe.yaml"
        return as_begun(recipe, _stored_recipe(stored)[1]) if stored.exists() else recipe

    def open(self, recipe: Recipe) -> None:
        """Creates and locks the folder.

        RecipeError when another recipe ran in it, or one that this version cannot read; StorageError when it is in use.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until the process ends
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StorageError(
                f"run.dir: {self.path} is in use by another process; wait for it or choose another run.dir"
            ) from None
        except OSError as error:
            raise StorageError(f"run.dir: {self.path} cannot be written: {error}") from error
        stored, schema = self.path / "recipe.yaml", SCHEMA
        if stored.exists():
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
        write_atomically(stored, to_yaml(recipe, schema).encode())

    @property
    def locked(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def close(self) -> None:
        """Gives up the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Replaces the JSON file `name`."""
        write_atomically(self.path / name, (json.dumps(values, indent=2) + "\n").encode())

    def write_status(self, code: int | None, reason: str, step: int, name: str = "status.json") -> None:
        """How the run stands; `code` is the exit code, or None while it runs."""
        self.write_json(name, {"code": code, "reason": reason, "step": step})

    def append(self, name: str, values: dict[str, Any]) -> None:
        """Adds one line to the JSON-lines file `name`."""
        with open(self.path / name, "a") as file:
            file.write(json.dumps(values) + "\n")

    def cut_after(self, name: str, step: int) -> None:
        """Drops the lines of `name` that a killed run wrote after the state at `step`, and a half-written last line."""
        path = self.path / name
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            if values["step"] <= step:
                kept.append(line + "\n")
        write_atomically(path, "".join(kept).encode())

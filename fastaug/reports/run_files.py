"""What the files of a run folder say, read so that one that is missing or damaged costs its own part of a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastaug.errors import RecipeError, StorageError
from fastaug.evaluation.sample_file import FILE, Samples, read_samples
from fastaug.recipe.reading import read_stored
from fastaug.recipe.schema import Recipe

RUNNING = "not ended"


@dataclass(frozen=True)
class RunFiles:
    """One run: what each of its files holds, nothing of those in `problems`, {file: why it is not there}."""

    path: Path
    name: str
    recipe: Recipe | None
    result: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    skipped: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    samples: Samples | None = None
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """The seed, where the recipe can be read."""
        return None if self.recipe is None else self.recipe.run.seed

    @property
    def test(self) -> dict[str, Any]:
        """The figures of the test split in result.json."""
        return mapping(self.result.get("test"))

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one event."""
        return [line for line in self.lines if line.get("event") == event]

    def class_name(self, label: int) -> str:
        """The name of a class; its number where that is not known."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"

    def state(self) -> str:
        """How the run stands, in a word or two."""
        code = self.status.get("code")
        if code == 0:
            return "ended" if self.result else "ended without a result"
        if code is None:
            return RUNNING
        return f"{self.status.get('reason', 'failed')} (code {code})"


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Every run, by a name of its own; StorageError for a folder that holds no run, or for one given twice."""
    whole = [path.expanduser().resolve() for path in paths]
    for path, other in zip(whole, paths, strict=True):
        if not (path / "recipe.yaml").is_file():
            raise StorageError(f"{other}: is no run folder, it has no recipe.yaml; name the run.dir of a training")
        if whole.count(path) > 1:
            raise StorageError(f"{other}: is named twice; name each run once")
    return [read_run(path, name) for path, name in zip(whole, names_of(whole), strict=True)]


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    found = []
    for path in paths:
        depth = 1
        while sum(other.parts[-depth:] == path.parts[-depth:] for other in paths) > 1 and depth < len(path.parts):
            depth += 1
        found.append("/".join(path.parts[-depth:]))
    return found


def read_run(path: Path, name: str) -> RunFiles:
    """What is in one run folder."""
    problems: dict[str, str] = {}
    recipe = None
    try:
        recipe = read_stored(path / "recipe.yaml")[0]
    except RecipeError as error:
        problems["recipe.yaml"] = str(error)
    read = {part: _object(path / f"{part}.json", problems) for part in ("result", "status", "profile")}
    names = _object(path / "classes.json", problems).get("classes")
    logs = {part: _log(path / f"{part}.jsonl", problems) for part in ("metrics", "skipped")}
    return RunFiles(
        path,
        name,
        recipe,
        **read,
        lines=logs["metrics"],
        skipped=logs["skipped"],
        classes=[str(each) for each in names] if isinstance(names, list) else [],
        samples=_samples(path, problems),
        problems=problems,
    )


def mapping(value: Any) -> dict[str, Any]:
    """A mapping as such, {} in place of anything else: files may hold anything."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings in a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _text(path: Path, problems: dict[str, str]) -> str:
    """The text of a file; "" and a problem where it is none. What is no regular file is never opened."""
    if not path.is_file():
        problems[path.name] = "is not there"
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems[path.name] = f"cannot be read ({error.strerror or error})"
        return ""


def _object(path: Path, problems: dict[str, str]) -> dict[str, Any]:
    if not (text := _text(path, problems)):
        problems.setdefault(path.name, "is empty")
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        problems[path.name] = "is damaged: it is no JSON object"
        return {}
    return values


def _log(path: Path, problems: dict[str, str]) -> list[dict[str, Any]]:
    """The JSON objects of a log, a line each; others are counted, but for a last one that a kill cut off."""
    found, bad = [], 0
    lines = [line for line in _text(path, problems).split("\n") if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            bad += number < len(lines)
            continue
        if isinstance(values, dict):
            found.append(values)
        else:
            bad += 1
    if bad:
        problems[path.name] = f"{bad} of {len(lines)} lines are damaged and left out"
    return found


def _samples(path: Path, problems: dict[str, str]) -> Samples | None:
    if not (path / FILE).is_file():
        problems[FILE] = "is not there: the run has not ended, or kept none (run.sample_record, data.multi_label)"
        return None
    try:
        return read_samples(path)
    except StorageError as error:
        problems[FILE] = str(error)
        return None

"""What two runs are compared by, of one of them: its start, recipe, images, order, and updates made again.

Gathered from the run folder where it holds it, else computed again by this version of the code from recipe and data.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError, RecipeError, StorageError
from fastaug.recipe.reading import read_stored
from fastaug.recipe.schema import Recipe
from fastaug.training import checkpoint
from fastaug.training.borrowed_process import borrowed_process
from fastaug.training.replay import Replay
from fastaug.training.starts import EVENT, read_starts

Line = dict[str, Any]


@dataclass
class RunEvidence:
    """One run. `problem`: why nothing could be computed again, None where it could.

    `files`: labels and paths by id, and the training split, as they are now. `orders`: ids of an epoch in their order.
    `updates`: the facts of every sample of an update (from 0), `losses` of it: this version's, None where unknown.
    """

    run: Path
    starts: list[Line]
    recipe: Recipe
    fingerprint: str | None
    classes: list[str] | None
    problem: str | None = None
    files: dict[str, Any] = field(default_factory=dict)
    orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    updates: dict[int, list[Line]] = field(default_factory=dict)
    losses: dict[int, float | None] = field(default_factory=dict)


def stored_evidence(run: Path) -> RunEvidence:
    """What the run folder itself holds; StorageError or RecipeError where it is none, or of a later version."""
    if not (run / "recipe.yaml").is_file():
        raise StorageError(f"{run}: is no run folder, it has no recipe.yaml; name the run.dir of a training")
    recipe, _ = read_stored(run / "recipe.yaml")
    path, _ = checkpoint.latest(run / "checkpoints")
    state = {} if path is None else checkpoint.load(path, whole=False).state
    return RunEvidence(run, _starts(run), recipe, state.get("data"), state.get("classes"))


def _starts(run: Path) -> list[Line]:
    """What each start ran on; what result.json says of the last one where no starts were noted."""
    if starts := read_starts(run):
        return [{name: value for name, value in start.items() if name not in EVENT} for start in starts]
    try:
        result = json.loads((run / "result.json").read_bytes())
    except (OSError, ValueError):
        return []
    return [{name: result[name] for name in ("processes", "commit", "versions") if name in result}]


def compute(evidence: RunEvidence, steps: Sequence[int], overrides: Sequence[str]) -> None:
    """Adds what recipe and data give: files, order, and the updates `steps` (from 0, rising) made again."""
    with borrowed_process():
        try:
            _compute(evidence, steps, overrides)
        except (DataError, RecipeError, StorageError) as error:
            evidence.problem = str(error)


def _compute(evidence: RunEvidence, steps: Sequence[int], overrides: Sequence[str]) -> None:
    replay = Replay(evidence.run, overrides)
    parts, order = replay.trainer.parts, replay.trainer.order
    evidence.files = {"train": parts.splits.train}
    if parts.index is not None:
        evidence.files |= {"paths": parts.index.paths, "labels": parts.index.labels}
    for epoch in sorted({0, replay.recipe.train.epochs - 1}):
        evidence.orders[epoch] = order.epoch_ids(epoch)
    for step in steps:
        if step >= replay.trainer.last_step:
            continue
        pieces = list(replay.pieces(step))
        evidence.updates[step] = [
            {"process": piece.place.rank, "micro_batch": piece.place.micro, **replay.facts(piece, row)}
            for piece in pieces
            for row in range(len(piece.batch.ids))
        ]
        totals = [piece.total for piece in pieces if piece.total is not None]
        exact = replay.go_to(step).losses == "exact"
        evidence.losses[step] = sum(totals) if exact and len(totals) == len(pieces) else None


def logged(run: Path) -> dict[tuple[str, int], Line]:
    """The lines of metrics.jsonl by event and update; StorageError where one cannot be read."""
    path = run / "metrics.jsonl"
    found: dict[tuple[str, int], Line] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            values = json.loads(line)
            found[values["event"], values["step"]] = values
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path}: line {number} cannot be read: {error}; remove it") from error
    return found


def common_checkpoints(a: Path, b: Path) -> Iterator[tuple[int, Path, Path]]:
    """The updates at which both runs keep a checkpoint, oldest first, with the two folders."""
    folders = [run / "checkpoints" for run in (a, b)]
    steps = [checkpoint.steps_of(folder) for folder in folders]
    for step in sorted(set(steps[0]) & set(steps[1])):
        name = checkpoint.name_of(step)
        yield step, folders[0] / name, folders[1] / name

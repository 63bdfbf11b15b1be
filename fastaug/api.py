"""fastaug from Python: `train` and `evaluate` do what the commands do, give figures back and raise what goes wrong.

    result = fastaug.train("quickstart", **{"data.root": "embedded:mnist5k", "train.epochs": 2})
    print(result.figures["top1"], fastaug.evaluate(result.run)["top1"])

docs/python.md has callbacks, interruption and what holds for notebooks and several processes.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.errors import RecipeError, StorageError
from fastaug.recipe.reading import read_recipe

if TYPE_CHECKING:
    from fastaug.training.evaluation_checks import Checks

SPLITS = ("train", "meta", "select", "test")


@dataclass(frozen=True)
class Result:
    """What a training has ended with: its run folder and `figures`, those of result.json there."""

    run: Path
    figures: dict[str, Any] = field(repr=False)

    @property
    def checkpoint(self) -> Path:
        """The folder of the run's last checkpoint; StorageError when it is gone."""
        from fastaug.training.checkpoint import latest

        path, _ = latest(self.run / "checkpoints")
        if path is None:
            raise StorageError(f"{self.run}: has no checkpoint any more; train again, or name another run")
        return path


def train(
    recipe: str | os.PathLike[str],
    /,
    *,
    callbacks: Callable[[dict[str, Any]], object] | Iterable[Callable[[dict[str, Any]], object]] = (),
    **settings: Any,
) -> Result:
    """Trains a recipe, the path of a YAML file or the name of one that comes with fastaug; goes on with a begun run.

    `settings`: values of its keys, **{"section.key": value}, or a mapping for a section, optim={"lr": 0.1}.
    `callbacks`: called with every line of metrics.jsonl, a dictionary with "event" and "step", as it is written.

    Raises what is in fastaug.errors: RecipeError, DataError, ... Ctrl-C saves a checkpoint and raises
    KeyboardInterrupt, SIGTERM raises Stopped; the same call then goes on from there. What a callback raises comes
    through after a checkpoint was saved; TypeError for one that cannot be called. Several processes: every one calls
    this, the main one has callbacks.
    """
    given = read_recipe(Path(recipe), list(settings.items()))
    listening = (callbacks,) if callable(callbacks) else tuple(callbacks)
    if odd := [each for each in listening if not callable(each)]:
        raise TypeError(f"callbacks: {odd[0]!r} cannot be called; give functions of one dictionary")
    from fastaug.training.borrowed_process import borrowed_process
    from fastaug.training.listeners import Listeners
    from fastaug.training.worker import attempt

    listeners = Listeners(listening)
    with borrowed_process():
        ending = attempt(given, listeners, borrowed=True)
    if listeners.error is not None:
        raise listeners.error
    if ending.interrupted:
        raise KeyboardInterrupt(str(ending.error)) from ending.error
    if ending.error is not None:
        raise ending.error
    run = Path(given.run.dir or "")
    if os.environ.get("RANK", "0") != "0":  # the main process writes the file, perhaps on another machine
        return Result(run, ending.figures)
    return Result(run, json.loads((run / "result.json").read_bytes()))


def evaluate(
    run: str | os.PathLike[str] | Result,
    /,
    *,
    split: str = "test",
    weights: str | None = None,
    tta: int | None = None,
    checks: "Checks | None" = None,
    **settings: Any,
) -> dict[str, Any]:
    """The figures of a run's last checkpoint, or of the checkpoint whose folder is named, on a split.

    `weights`: "raw" or "ema", `tta`: copies to average over; both are the recipe's where they are None. `checks`, a
    `fastaug.training.evaluation_checks.Checks`: calibration and robustness, whose figures stand beside. `settings`
    replaces values of the run's recipe, say **{"data.root": "other/images"}, whose classes are matched by name.

    `run`: a run folder, a checkpoint's folder, or what `train` gave. `split`: train, meta, select or test. RecipeError
    for a split, weights or settings that do not exist, StorageError without a usable checkpoint, DataError without
    images.
    """
    problems = [f"split: {split!r} is not one of {', '.join(SPLITS)}"] if split not in SPLITS else []
    if weights not in (None, "raw", "ema"):
        problems.append(f"weights: {weights!r} is neither raw nor ema; leave it out for the recipe's")
    if problems:
        raise RecipeError(problems)
    from fastaug.training.borrowed_process import borrowed_process
    from fastaug.training.evaluate_run import Wanted, evaluate_run
    from fastaug.training.evaluation_checks import NO_CHECKS

    path = run.run if isinstance(run, Result) else Path(run)
    with borrowed_process():
        wanted = Wanted(path, split, weights, tta, list(settings.items()), checks=checks or NO_CHECKS)
        return evaluate_run(wanted, borrowed=True).figures

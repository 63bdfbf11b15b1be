"""Where metrics go besides metrics.jsonl: Accelerate's trackers by name, and summary.csv as timm writes it.

A tracker serves the training, never the other way round. One that cannot start refuses a run that has not begun; what
fails later is told and costs lines of that tracker alone, for metrics.jsonl has every one.
"""

import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from fastaug.console import Console
from fastaug.errors import RecipeError
from fastaug.recipe.reading import flat
from fastaug.recipe.schema import Recipe
from fastaug.training.run_folder import RunFolder
from fastaug.training.summary_table import read_epochs, summary_table

PATIENCE = 3  # failures in a row after which a tracker is left out until the next start
FILE = "trackers.json"  # of the run folder: under which id its trackers know the run
HELD_OUT = ("select", "test")


@dataclass
class _Tracker:
    """One of Accelerate's trackers, and what became of what it was given."""

    name: str
    own: GeneralTracker
    failures: int = 0  # in a row
    lost: int = 0  # calls that failed, or were not made any more
    told: frozenset[tuple[str, int]] = frozenset()  # events and steps that it has from a killed run, and keeps
    last_error: str = ""

    @property
    def given_up(self) -> bool:
        return self.failures >= PATIENCE


@dataclass
class Trackers(AbstractContextManager["Trackers"]):
    """The trackers of a run, on its main process; elsewhere, and without any, every call does nothing.

    As a context manager it ends them however the run ends, but for a second Ctrl-C, which does not wait for uploads.
    """

    recipe: Recipe
    folder: RunFolder
    console: Console
    main: bool
    _running: list[_Tracker] = field(default_factory=list)

    @property
    def show_pictures(self) -> bool:
        """Whether a picture would be looked at: csv has none."""
        return bool(self._running)

    def start(self, step: int) -> None:
        """Starts every tracker of a run that goes on at `step`, its curves where they were; called once.

        RecipeError when one cannot start and nothing has been trained yet; later that is only told.
        """
        names = [name for name in self.recipe.run.trackers if name != "csv"] if self.main else []
        run, known = self._known(step, names) if names else ("", [])
        for name in dict.fromkeys(names):
            tracker = _Tracker(name, _build(name, self.recipe, self.folder, run, step))
            # What a killed run wrote behind its checkpoint TensorBoard forgets, and wandb does not take again; others
            # than these three begin a new run.
            if name == "trackio" and name in known:
                tracker.told = self.folder.replayed
            with _Failure() as failure:
                tracker.own.start()
                if step == 0:  # what goes on has them already
                    tracker.own.store_init_configuration(flat(self.recipe))
            if failure.error is None:
                self._running.append(tracker)
            elif step == 0:
                problem = f"run.trackers: {name} cannot start: {failure.said}; {_remedy(name)}"
                raise RecipeError([problem]) from failure.error
            else:
                self._note(name, f"{name} could not start at update {step} ({failure.said})")

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Gives every tracker the numbers among `values` of an event ("train", "epoch", "test", ...)."""
        numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        for tracker in self._running:
            if (event, step) not in tracker.told:
                self._call(tracker, step, lambda own: own.log(numbers, step=step))
        if self.main and "csv" in self.recipe.run.trackers and event in ("epoch", *HELD_OUT):
            epochs = read_epochs(self.folder.path / "metrics.jsonl", self.recipe.eval.weights)
            self.folder.write("summary.csv", summary_table(epochs))

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Gives a picture to every tracker that takes one."""
        for tracker in self._running:
            if tracker.name in _PICTURES:
                self._call(tracker, step, partial(_PICTURES[tracker.name], name=name, picture=picture, step=step))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            return
        for tracker in self._running:
            with _Failure() as failure:
                tracker.own.finish()
            if failure.error is not None:
                tracker.last_error, tracker.lost = failure.said, tracker.lost + 1
            if tracker.lost:
                self._note(tracker.name, f"{tracker.name} lost {tracker.lost} calls, the last to: {tracker.last_error}")
        self._running = []

    def _call(self, tracker: _Tracker, step: int, work: Callable[[GeneralTracker], None]) -> None:
        if tracker.given_up:
            tracker.lost += 1
            return
        with _Failure() as failure:
            work(tracker.own)
        if failure.error is None:
            tracker.failures = 0
            return
        tracker.failures, tracker.lost = tracker.failures + 1, tracker.lost + 1
        first, tracker.last_error = not tracker.last_error, failure.said
        if first or tracker.given_up:
            then = "is left out until the next start" if tracker.given_up else "is tried again"
            self._note(tracker.name, f"{tracker.name} failed at update {step} ({failure.said}) and {then}")

    def _note(self, name: str, text: str) -> None:
        """On the screen now and in status.json from its next writing on."""
        self.console.print(f"warning: run.trackers: {text}; the training goes on, metrics.jsonl has every value")
        # A dictionary anew: a checkpoint's thread may be writing the one of before.
        self.folder.notes["trackers"] = {**self.folder.notes.get("trackers", {}), name: text}

    def _known(self, step: int, names: Sequence[str]) -> tuple[str, list[str]]:
        """The id of this run, new where training begins, and the trackers that knew it before; `names` from now on."""
        run, known = uuid.uuid4().hex, []
        if step:
            try:
                stored = json.loads((self.folder.path / FILE).read_bytes())
                run, known = str(stored["id"]), list(stored["trackers"])
            except (OSError, ValueError, LookupError, TypeError):
                pass  # none was switched on so far, or the file is damaged: a run of its own from here
        self.folder.write_json(FILE, {"id": run, "trackers": sorted({*known, *names})})
        return run, known


class _Failure:
    """Context manager that keeps what a tracker's library raised: of any type, for they have types of their own."""

    error: Exception | None = None

    @property
    def said(self) -> str:
        """The first line of the error."""
        return (str(self.error).strip().splitlines() or [""])[0] or type(self.error).__name__

    def __enter__(self) -> "_Failure":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


def _build(name: str, recipe: Recipe, folder: RunFolder, run: str, step: int) -> GeneralTracker:
    """A tracker that has not started; tensorboard, wandb and trackio go on with the curves of an earlier start."""
    title = folder.path.resolve().name
    goes_on: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": step + 1 if step else 0},
        "wandb": {"name": title, "id": run, "resume": "allow", "dir": str(folder.path)},
        "trackio": {"name": f"{title}-{run[:8]}", "resume": "allow" if step else "never"},
    }
    kind = LOGGER_TYPE_TO_CLASS[name]
    place = (str(folder.path),) if kind.requires_logging_directory else ()
    return kind(recipe.run.project, *place, **goes_on.get(name, {}))


def _remedy(name: str) -> str:
    offline = {"wandb": "log in (wandb login), set WANDB_MODE=offline, ", "trackio": "see TRACKIO_DIR, "}
    return f"{offline.get(name, '')}or leave {name} out"


def _trackio_picture(own: GeneralTracker, name: str, picture: Image.Image, step: int) -> None:
    import trackio

    own.log({name: trackio.Image(np.asarray(picture))}, step=step)


# Each as its class in accelerate.tracking takes it; comet_ml, mlflow and dvclive have no way for pictures there.
_PICTURES: dict[str, Callable[..., None]] = {
    "tensorboard": lambda own, name, picture, step: own.log_images(
        {name: np.asarray(picture)[None]}, step=step, dataformats="NHWC"
    ),
    "wandb": lambda own, name, picture, step: own.log_images({name: [np.asarray(picture)]}, step=step),
    "swanlab": lambda own, name, picture, step: own.log_images({name: [np.asarray(picture)]}, step=step),
    "aim": lambda own, name, picture, step: own.log_images({name: picture}, step=step),
    "clearml": lambda own, name, picture, step: own.log_images({name: np.asarray(picture)}, step=step),
    "trackio": _trackio_picture,
}

"""Callbacks of a training from Python: they hear every line of metrics.jsonl; one that raises ends the run, saved."""

import json
from collections.abc import Callable, Iterable
from typing import Any

Line = dict[str, Any]
Callback = Callable[[Line], object]


class Listeners:
    """Hands each line to every callback. What one raises is kept in `error` and asks the run to stop.

    The loop then saves and ends as after a signal, and nobody is called again: an exception in the middle of an update
    would leave a state that cannot be continued.
    """

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)
        self.error: BaseException | None = None

    def hear(self, text: str) -> None:
        """A line as it stands in the file; each callback gets a dictionary of its own."""
        for callback in self._callbacks:
            if self.error is not None:
                return
            try:
                callback(json.loads(text))
            except BaseException as error:  # whatever foreign code raises, a KeyboardInterrupt too, is raised later
                self.error = error

    def reason(self) -> str | None:
        """Why the run should stop, or None."""
        return None if self.error is None else f"a callback raised {type(self.error).__name__}: {self.error}"

"""Callbacks hear lines as they are written; the first that raises is kept, and nobody is called after it."""

from typing import Any

import pytest

from fastaug.training.listeners import Listeners


def test_each_callback_gets_a_dictionary_of_its_own() -> None:
    heard: list[dict[str, Any]] = []

    def take(line: dict[str, Any]) -> None:
        heard.append(dict(line))
        line.clear()

    listeners = Listeners([take, take])
    listeners.hear('{"event": "train", "loss": null}')
    assert heard == 2 * [{"event": "train", "loss": None}]
    assert listeners.error is None
    assert listeners.reason() is None


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt("no"), SystemExit("no")])
def test_what_a_callback_raises_is_kept_and_is_a_reason_to_stop(error: BaseException) -> None:
    heard: list[dict[str, Any]] = []

    def refuse(_: dict[str, Any]) -> None:
        raise error

    listeners = Listeners([heard.append, refuse, heard.append])
    listeners.hear('{"step": 1}')
    listeners.hear('{"step": 2}')
    assert heard == [{"step": 1}]
    assert listeners.error is error
    assert listeners.reason() == f"a callback raised {type(error).__name__}: no"

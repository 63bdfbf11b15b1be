"""The screen: what a narrow one, one without colours and one that is no terminal get to see."""

import io
import os
import pty
import sys
import warnings
from collections.abc import Callable

import pytest

from fastaug.console import Console, warnings_as_lines

Shown = Callable[..., str]
ROWS = {"test top1": "0.9793", "test balanced_top1": "0.9790", "images/s": "1612"}


def show(console: Console) -> None:
    with console.bar("training", 3) as bar:
        console.print("epoch 1  loss 0.5")
        for _ in range(3):
            bar.advance()
    console.summary("runs/quickstart (raw weights)", ROWS)


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """on_terminal(NAME=value, ...): what `show` writes to a terminal under these variables."""

    def shown(**variables: str) -> str:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", **variables}.items():
            monkeypatch.setenv(name, value)
        screen, ours = pty.openpty()
        with os.fdopen(ours, "w") as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            show(Console(main=True))
        seen = os.read(screen, 100_000).decode()
        os.close(screen)
        return seen

    return shown


def test_no_terminal_gets_lines_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(main=True))
    seen = capsys.readouterr().out
    assert "epoch 1  loss 0.5\n" in seen
    assert "\x1b" not in seen
    assert "\r" not in seen
    assert "training" not in seen  # the bar
    assert all(f"{value}" in seen for value in ROWS.values())


def test_a_terminal_gets_a_bar_and_colours_unless_they_are_not_wanted(on_terminal: Shown) -> None:
    plain, bare = on_terminal(), on_terminal(NO_COLOR="1")
    assert "training" in plain
    assert "\x1b[38;" in plain  # a colour
    assert "training" in bare
    assert "\x1b[38;" not in bare


def test_a_narrow_screen_keeps_all_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    show(Console(main=True))
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("│", "┌", "└"))]
    assert len(table) >= len(ROWS) + 2
    assert max(map(len, table)) <= 30
    assert all(any(value in line for line in table) for value in ROWS.values())


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(main=False))
    assert capsys.readouterr().out == ""


def test_a_screen_without_letters_for_a_name_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, "ascii"))
    Console(main=True).print("größe")
    sys.stdout.flush()
    assert bytes_.getvalue() == b"gr\\xf6\\xdfe\n"


@pytest.mark.parametrize("speaks", [True, False])
def test_warnings_are_lines_said_once_at_once_and_by_one_process(
    speaks: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="gone"), warnings_as_lines(speaks):  # noqa: PT012
        for text in ("left out: a.heic", "left out: a.heic", "another"):
            warnings.warn(text, stacklevel=1)
        said = capsys.readouterr().err  # before the end, which a kill does not wait for
        raise OSError("gone")
    assert said == ("warning: left out: a.heic\nwarning: another\n" if speaks else "")
    with pytest.warns(UserWarning, match="behind it as ever"):
        warnings.warn("behind it as ever", stacklevel=1)
    with pytest.warns(FutureWarning, match="of another kind"), warnings_as_lines(speaks):
        warnings.warn("of another kind", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == ""

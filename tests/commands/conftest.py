"""Tools as scripts, started in this process: what a process of its own costs is mostly the import of torch."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

TOOLS = Path(__file__).resolve().parents[2] / "tools"
Tool = Callable[..., str]


def _fresh() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Iterator[Tool]:
    """tool("name", word, ..., code=0): runs tools/name.py as a script; what it says, errors behind the rest."""

    def start(name: str, *words: object, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [str(TOOLS), *sys.path])  # as for a script; the tool replaces it
            patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
            with pytest.raises(SystemExit) as end:
                runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        _fresh()
        said = capsys.readouterr()
        assert (end.value.code or 0) == code, said.out + said.err
        return said.out + said.err

    yield start
    _fresh()

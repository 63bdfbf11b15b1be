"""The command `fastaug`: all commands are listed, found and light, and their exit codes come through."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fastaug.__main__ import FIRST, commands, line, main

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "timm", "accelerate", "nvidia", "scipy", "kornia", "numpy", "pydantic"}
LOADED = """
import json, sys
from fastaug.__main__ import main
code = main(sys.argv[1:])
print("LOADED" + json.dumps([code, sorted(sys.modules)]))
"""


def test_help_lists_every_command_in_a_line_and_loads_nothing_heavy(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", LOADED, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shown, _, loaded = told.stdout.partition("LOADED")
    code, modules = json.loads(loaded)
    assert code == 0
    assert not HEAVY & set(modules)
    listed = dict(re.findall(r"^  (\S+) +(\S.*)$", shown, flags=re.M))
    assert list(listed) == commands()
    assert all(line(name) == listed[name] for name in commands())
    assert max(map(len, shown.splitlines())) <= 120


def test_the_everyday_commands_are_there_and_first() -> None:
    assert {"train", "evaluate", "report", "study", "check", "keys", "recipes", "show-batch", "same-run"} <= set(
        commands()
    )
    everyday = [name for name in commands() if name in FIRST]
    assert commands()[: len(everyday)] == everyday


@pytest.mark.parametrize("name", commands())
def test_a_command_says_what_it_does_and_how_it_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: fastaug {name} ")
    assert re.search(rf"^ {{4}}(fastaug|accelerate launch -m fastaug) {name}\b", said, flags=re.M)  # an example
    assert line(name).endswith((".", "?"))


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda tool: tool.stem)
def test_a_tool_is_a_command_or_a_benchmark_and_nothing_more(tool: Path) -> None:
    text = tool.read_text()
    found = re.search(r"^from fastaug\.commands\.(\w+) import main$", text, flags=re.M)
    if found is None:
        assert tool.stem == "torture" or re.search(r"^from benchmarks\.\S+ import main$", text, flags=re.M)
        return
    assert found[1].replace("_", "-") in commands()
    assert len(text.splitlines()) <= 15
    assert import_module(f"fastaug.commands.{found[1]}").main


def test_exit_codes_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "quickstart"]) == 0
    assert "img_size: 28" in capsys.readouterr().out
    assert main(["check", "quickstart", "optim.lr=-1"]) == 2
    assert "optim.lr: -1.0 must be above 0" in capsys.readouterr().err
    assert main(["keys", "optim.lr"]) == 0
    assert capsys.readouterr().out.startswith("optim.lr  float")
    assert main(["keys", "optim.lrr"]) == 2
    assert main(["recipes"]) == 0
    assert re.search(r"^quickstart +5,000 real MNIST images", capsys.readouterr().out, flags=re.M)
    assert main(["train", "nowhere.yaml"]) == 2
    assert main(["evaluate", "nowhere"]) == 5
    assert main(["--version"]) == 0


@pytest.mark.parametrize("words", [[], ["chek"], ["__init__"], ["../train"], ["evaluate.py"], ["x" * 10_000]])
def test_what_is_no_command_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert "fastaug --help" in said.err if words else said.out.startswith("usage: fastaug COMMAND")
    assert len(said.err) < 300
    assert "did you mean check" in said.err or words != ["chek"]


def test_the_name_of_the_file_is_the_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["show_batch", "--help"])
    assert capsys.readouterr().out.startswith("usage: fastaug show-batch ")


@pytest.mark.parametrize("start", [["-m", "fastaug"], [str(ROOT / "fastaug")], [str(ROOT / "fastaug" / "__main__.py")]])
def test_it_starts_as_a_module_a_folder_and_a_file(start: list[str]) -> None:
    told = subprocess.run(
        [sys.executable, *start, "keys", "optim.lr"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("optim.lr  float")

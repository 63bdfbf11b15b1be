"""Every key has its help, and `--keys` prints what the schema enforces."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from fastaug.commands import train
from fastaug.errors import RecipeError
from fastaug.recipe.key_table import describe
from fastaug.recipe.schema import Recipe, Tracker

ROOT = Path(__file__).resolve().parents[2]
KEYS = {f"{section.name}.{key.name}": section.type for section in fields(Recipe) for key in fields(section.type)}  # type: ignore[arg-type]


def test_every_key_has_a_help_text() -> None:
    for name, section in KEYS.items():
        text = section.__pydantic_fields__[name.partition(".")[2]].description  # type: ignore[union-attr]
        assert len(text.split()) >= 2, name
        assert text != text.upper(), name
        assert not text.endswith("."), name


def test_all_keys_are_printed_in_order_and_aligned() -> None:
    lines = describe().splitlines()
    heads = [line for line in lines if line[:1].strip()]
    assert [line.split()[0] for line in heads] == list(KEYS)
    assert max(map(len, lines)) <= 120
    assert len({re.match(r"\S+ +", line).end() for line in heads}) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("optim.lr", ["float", "0.1", "above 0, at most 1e+30"]),
        ("data.scale", ["list of float", "[0.08, 1.0]", "2 numbers, above 0, at most 1"]),
        ("data.img_size", ["int", "224", "at least 1, at most 4096"]),
        ("eval.img_size", ["int or null", "null", "at least 1, at most 4096"]),
        ("run.seed", ["int", "0", f"at least 0, at most {2**63 - 1}"]),
        (
            "run.trackers",
            ["list of str", "[]", ", ".join(get_args(Tracker))],
        ),
        ("data.loader", ["str", '"dali"', "dali, resident, synthetic"]),
        ("optim.opt_betas", ["list of float or null", "null", "at least 0, below 1"]),
        ("model.kwargs", ["mapping", "{}"]),
        ("meta.engine", ["str", '"auto"', "auto, forward, functional, reverse, difference, implicit, fused"]),
        ("model.ema", ["bool", "false"]),
        ("optim.warmup_lr", ["float", "1e-05", "at least 0, at most 1e+30"]),
    ],
)
def test_a_key_is_printed_with_type_default_and_limits(name: str, cells: list[str]) -> None:
    head, text, *_ = describe(name).splitlines()
    assert head.split("  ") == [name, *cells]
    assert text.startswith("    ")


def test_a_section_is_printed_alone() -> None:
    names = [line.split()[0] for line in describe("train").splitlines() if line[:1].strip()]
    assert names == [name for name in KEYS if name.startswith("train.")]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("otpim", "--keys: unknown 'otpim'; did you mean 'optim'? (known: run, data, model, optim, train,"),
        ("xyzzy", "--keys: unknown 'xyzzy' (known: run, data,"),
        ("optim.lrr", "--keys: unknown 'optim.lrr'; did you mean 'optim.lr'? (known: optim.opt, optim.lr,"),
        ("lr", "--keys: unknown 'lr' (known: run,"),
    ],
)
def test_what_is_not_known_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        describe(wanted)
    assert caught.value.problems[0].startswith(message)


def process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    loud = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    command = [sys.executable, "-c", loud, str(ROOT / "fastaug" / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_them_without_torch() -> None:
    ended = process("--keys", "meta")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == describe("meta") + "False\n"


def test_the_command_refuses_an_unknown_section() -> None:
    ended = process("--keys", "optmi")
    assert ended.returncode == 2
    assert ended.stderr.strip().startswith("--keys: unknown 'optmi'; did you mean 'optim'?")
    assert "Traceback" not in ended.stderr


def test_the_command_line_takes_keys_or_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.parse(["--keys"]).keys == ""
    assert train.parse(["--keys", "optim"]).keys == "optim"
    assert train.parse(["r.yaml"]).keys is None
    with pytest.raises(SystemExit):
        train.parse([])
    assert "a recipe is needed" in capsys.readouterr().err

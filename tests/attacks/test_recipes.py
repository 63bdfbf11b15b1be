"""Bad recipes are refused with the key, the value and a remedy, all in this process and some as a user starts them."""

import subprocess
import sys
from pathlib import Path

import pytest

from attacks.recipes import BadRecipe, bad_for_full_check, bad_recipes
from fastaug.errors import RecipeError
from fastaug.nets.check_names import check_names
from fastaug.recipe.reading import read_recipe

ROOT = Path(__file__).resolve().parents[2]
BAD = bad_recipes()


def test_there_are_many_and_no_two_alike() -> None:
    assert len(BAD) >= 200
    assert len({(bad.content, bad.overrides) for bad in BAD}) == len(BAD)


def said(path: Path, bad: BadRecipe) -> list[str]:
    path.write_bytes(bad.content)
    with pytest.raises(RecipeError) as caught:
        check_names(read_recipe(path, list(bad.overrides)))
    return caught.value.problems


def test_each_is_refused_by_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    wrong = []
    for bad in BAD:
        problems = said(tmp_path / "r.yaml", bad)
        short = all("\n" not in problem and len(problem) < 1500 for problem in problems) and len(problems) < 100
        if not short or not any(bad.expected in problem for problem in problems):
            wrong.append((bad.name, bad.expected, [problem[:200] for problem in problems[:3]]))
    assert not wrong


@pytest.mark.parametrize("bad", bad_for_full_check(), ids=lambda bad: bad.name)
def test_what_only_the_full_check_finds(tmp_path: Path, bad: BadRecipe) -> None:
    assert any(bad.expected in problem for problem in said(tmp_path / "r.yaml", bad))


@pytest.mark.parametrize("bad", BAD[:: len(BAD) // 6], ids=lambda bad: bad.name)
def test_the_command_ends_with_2(tmp_path: Path, bad: BadRecipe) -> None:
    (tmp_path / "r.yaml").write_bytes(bad.content)
    command = [sys.executable, str(ROOT / "fastaug/train.py"), str(tmp_path / "r.yaml"), *bad.overrides, "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert bad.expected in ended.stderr
    assert "Traceback" not in ended.stderr

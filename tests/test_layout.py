"""Names and speed: what keeps `accelerate launch fastaug/train.py` working from a bare clone."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastaug", "tools", "benchmarks", "attacks")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))


def importable_names() -> list[tuple[str, str]]:
    """(folder, name) of the modules and sub-packages that a script in that folder puts first on sys.path."""
    found = []
    for folder in ("fastaug", "tools"):
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py"))):
                found.append((folder, path.stem))
    return [(folder, name) for folder, name in found if name not in ("__init__", "__main__")]


@pytest.mark.parametrize(("folder", "name"), importable_names())
def test_no_module_shadows_an_importable_name(folder: str, name: str) -> None:
    elsewhere = [path for path in sys.path if Path(path).resolve() != ROOT / folder]
    assert name not in sys.stdlib_module_names
    assert PathFinder.find_spec(name, elsewhere) is None


def test_the_test_of_names_finds_names() -> None:
    names = importable_names()
    assert ("fastaug", "train") in names
    assert ("fastaug", "ops") in names
    assert PathFinder.find_spec("yaml", sys.path) is not None


def test_few_rooms_at_the_top() -> None:
    """Each has a line in tests/test_walls.py and in CONTRIBUTING.md."""
    assert 10 < len([name for folder, name in importable_names() if folder == "fastaug"]) <= 25


def test_no_package_of_ours_hides_a_top_level_one() -> None:
    for name in ("benchmarks", "tools", "tests", "attacks", "docs"):
        assert not (ROOT / "fastaug" / name).exists()
        assert not (ROOT / "fastaug" / f"{name}.py").exists()


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, `from a import b` as a and a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_nothing_imports_the_script() -> None:
    assert [file for file in FILES if {"fastaug.train", ".train"} & set(imports(file))] == []


def test_files_speak_of_the_project_alone() -> None:
    assert [file for file in FILES if re.search(r"/(work|opt|tmp|home|root)/", file.read_text())] == []


def best_of_three(*command: str) -> float:
    """Seconds of processor time, which other work on the machine leaves as they are."""
    times = []
    for _ in range(3):
        start = children_seconds()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
        times.append(children_seconds() - start)
    return min(times)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "command",
    [
        ("-c", "import fastaug"),
        ("fastaug/train.py", "--help"),
        ("fastaug/train.py", "recipes/quickstart.yaml", "--check"),
    ],
    ids=["import", "help", "check"],
)
def test_what_trains_nothing_takes_less_than_a_second(command: tuple[str, ...]) -> None:
    assert best_of_three(*command) < 1


HEAVY = {"torch", "torchvision", "timm", "accelerate", "nvidia", "scipy", "kornia"}
RUN = """
import json, runpy, sys
sys.argv = ["fastaug/train.py", *sys.argv[1:]]
try:
    runpy.run_path("fastaug/train.py", run_name="__main__")
except SystemExit as end:
    print("LOADED" + json.dumps([end.code, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("arguments", [("--help",), ("recipes/quickstart.yaml", "--check")], ids=["help", "check"])
def test_it_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", RUN, *arguments]
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    code, modules = json.loads(ended.stdout.partition("LOADED")[2])
    assert code in (0, None)
    assert "fastaug.recipe.reading" in modules
    assert not HEAVY & set(modules)


def test_the_script_runs_from_anywhere_without_an_installed_package(tmp_path: Path) -> None:
    script, recipe = ROOT / "fastaug" / "train.py", ROOT / "recipes" / "quickstart.yaml"
    # -S leaves out site-packages and with them an editable installation of the project; its dependencies come back.
    packages = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-S", str(script), str(recipe), "--check"]
    environment = {"PYTHONPATH": packages}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "img_size: 28" in ended.stdout

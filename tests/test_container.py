"""The Containerfile: what it copies is enough for a wheel, and its shell installs what each DEVICE is to have.

No image is built: nothing here can. Its RUN lines are run by sh, with programs in place of pip that note their words.
"""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Containerfile").read_text()
LINES = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
ARGUMENTS = dict(line.removeprefix("ARG ").split("=", 1) for line in LINES if line.startswith("ARG "))


def install(folder: Path, **arguments: str) -> tuple[int, list[str]]:
    """The exit code of the RUN that installs, and what it started, a line each."""
    (script,) = [line.removeprefix("RUN ") for line in LINES if line.startswith("RUN ") and "pip install" in line]
    programs = folder / "bin"
    programs.mkdir()
    for name in ("pip", "fastaug", "python"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder / "said"}\n')
        (programs / name).chmod(0o755)
    variables = {"PATH": f"{programs}:/usr/bin:/bin", **ARGUMENTS, **arguments}
    done = subprocess.run(["sh", "-c", script], env=variables, cwd=folder, capture_output=True, text=True)
    said = folder / "said"
    return done.returncode, said.read_text().splitlines() if said.exists() else [done.stderr]


@pytest.mark.parametrize(
    ("arguments", "torch", "swaps"),
    [
        ({}, "torch torchvision", False),
        ({"DEVICE": "cuda12", "TORCH_INDEX": "https://index"}, "--index-url https://index torch torchvision", False),
        ({"DEVICE": "cuda13"}, "torch torchvision", True),
    ],
)
def test_each_device_gets_its_torch_and_its_dali(
    tmp_path: Path, arguments: dict[str, str], torch: str, swaps: bool
) -> None:
    code, said = install(tmp_path, **arguments)
    assert code == 0
    assert said[:2] == [f"pip install --no-cache-dir {torch}", "pip install --no-cache-dir .[demo,export,table]"]
    dali = ["pip uninstall --yes nvidia-dali-cuda120", "pip install --no-cache-dir nvidia-dali-cuda130"]
    assert said[2:-1] == (dali if swaps else [])
    assert said[-1] == "python -c import fastaug.training.worker"


def test_another_device_installs_nothing(tmp_path: Path) -> None:
    code, said = install(tmp_path, DEVICE="tpu")
    assert code == 2
    assert said == ["DEVICE is cpu, cuda12 or cuda13, not tpu\n"]


def test_names_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(ARGUMENTS["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert "nvidia-dali-cuda120" in {re.split(r"[>=]", each)[0] for each in project["dependencies"]}
    assert tuple(map(int, ARGUMENTS["PYTHON"].split("."))) >= (3, 11)
    assert 'ENTRYPOINT ["fastaug"]' in LINES
    assert project["scripts"]["fastaug"]


@pytest.mark.slow
def test_what_is_copied_makes_a_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for words in (line.split()[1:] for line in LINES if line.startswith("COPY ")):
        subprocess.run(["cp", "-a", *words[:-1], source / words[-1]], cwd=ROOT, check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
    ]
    subprocess.run([*build, source], check=True)
    (wheel,) = tmp_path.glob("fastaug-*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {"fastaug/recipes/quickstart.yaml", "fastaug/reports/templates/checks.html"} <= set(inside)

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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
(BROUGHT,) = re.findall(r"nvidia-dali-(\w+)", " ".join(PROJECT["dependencies"]))  # by fastaug itself


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


@pytest.mark.parametrize(("device", "dali"), [("cpu", "120"), ("cuda12", "120"), ("cuda13", "130")])
def test_each_device_ends_with_one_dali_and_gets_its_torch_first(tmp_path: Path, device: str, dali: str) -> None:
    code, said = install(tmp_path, DEVICE=device, TORCH_INDEX="https://index")
    assert code == 0
    there: set[str] = set()
    for words in map(str.split, said):
        if any(word.startswith(".[") for word in words):
            assert {"https://index", "torch", "torchvision"} <= there  # else this line would take those of PyPI
            words += [f"nvidia-dali-{BROUGHT}"]
        there = there - set(words) if "uninstall" in words else there | set(words)
    assert {each for each in there if "dali" in each} == {f"nvidia-dali-cuda{dali}"}


def test_another_device_installs_nothing(tmp_path: Path) -> None:
    code, said = install(tmp_path, DEVICE="tpu")
    assert code == 2
    assert said == ["DEVICE is cpu, cuda12 or cuda13, not tpu\n"]


def test_names_are_those_of_the_project() -> None:
    assert set(ARGUMENTS["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    least = PROJECT["requires-python"].removeprefix(">=")
    assert tuple(map(int, ARGUMENTS["PYTHON"].split("."))) >= tuple(map(int, least.split(".")))


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

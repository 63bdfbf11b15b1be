"""What numba keeps on disk, in processes of their own: found again, and never that of an older source."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastaug

SCRIPT = """
import json
import torch
import fastaug
from fastaug.ops.crop_mix import cpu

pixels, share = torch.full((1, 2, 20, 3), 10.0), torch.tensor([[0.0, 0.0, 0.0, 1.0]])
gradient = cpu.adjoint(pixels, torch.zeros(1, 8, dtype=torch.int32), share, [2.0, 2.0, 2.0], torch.float32)
from fastaug.ops.crop_mix.cpu.row_program import adjoint

values, stats = set(gradient.flatten().tolist()), adjoint.stats
print(json.dumps([fastaug.__file__, sorted(values), sum(stats.cache_hits.values())]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, nothing compiled."""
    copy = tmp_path / "copy" / "fastaug"
    shutil.copytree(Path(fastaug.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def run(package: Path, cache: Path) -> tuple[list[float], int]:
    """The values of a gradient, and how many functions came from the disk; `cache` is that of the user."""
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    env |= {"PYTHONPATH": str(package.parent), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=package.parent, check=False)
    assert done.returncode == 0, done.stderr
    file, values, hits = json.loads(done.stdout)
    assert Path(file).parent == package
    return values, hits


def test_compiled_code_is_kept_until_another_source_changes(package: Path, tmp_path: Path) -> None:
    folder, cache = package / "ops" / "crop_mix" / "cpu", tmp_path / "cache"
    assert run(package, cache) == ([20.0], 0)
    assert run(package, cache) == ([20.0], 1)
    vectors = folder / "vectors.py"
    source = vectors.read_text()
    assert source.count("builder.fmul(x, second)") == 1
    vectors.write_text(source.replace("builder.fmul(x, second)", "builder.fadd(x, second) "))
    assert run(package, cache) == ([21.0], 0)
    assert {file.parent for file in tmp_path.rglob("*.nbi")} == {folder / "__pycache__"}


def test_a_package_that_cannot_be_written_to_keeps_it_in_the_users_cache(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (package / "ops" / "crop_mix" / "cpu" / "__pycache__").touch()  # no folder can be made there, by root neither
    assert run(package, cache) == ([20.0], 0)
    assert run(package, cache) == ([20.0], 1)
    assert all(file.is_relative_to(cache) for file in tmp_path.rglob("*.nbi"))

"""What numba keeps on disk, in processes of their own: found again, and never that of an older source."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastaug
from fastaug.ops.crop_mix.cpu.compiler import entry, inlined

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
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")}
    env |= {"PYTHONPATH": str(package.parent), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=package.parent, check=False)
    assert done.returncode == 0, done.stderr
    file, values, hits = json.loads(done.stdout)
    assert Path(file).parent == package
    return values, hits


def kept_as(added: int) -> str:
    """The name under which a function is kept that calls one which adds `added`."""

    @inlined
    def callee(x: int) -> int:
        return x + added

    def caller(x: int) -> int:
        return callee(x)  # type: ignore[no-any-return]

    entry(caller)
    return caller.__qualname__


def test_code_is_kept_under_a_name_of_its_own_and_of_what_it_calls() -> None:
    assert kept_as(1) == kept_as(1)
    assert kept_as(1) != kept_as(2)


@pytest.mark.slow
def test_compiled_code_is_kept_until_another_source_changes(package: Path, tmp_path: Path) -> None:
    folder, cache = package / "ops" / "crop_mix" / "cpu", tmp_path / "cache"
    assert run(package, cache) == ([20.0], 0)
    assert run(package, cache) == ([20.0], 1)
    vectors = folder / "vectors.py"
    source, written = vectors.read_text(), vectors.stat().st_mtime_ns
    assert source.count("builder.fmul(x, second)") == 1
    vectors.write_text(source.replace("builder.fmul(x, second)", "builder.fadd(x, second)"))
    os.utime(vectors, ns=(written, written))  # as large and as old as before: Python goes on with what it compiled
    assert run(package, cache) == ([20.0], 1)
    os.utime(vectors)  # from now on it does not, and what ran meanwhile must not be served for this source
    assert run(package, cache) == ([21.0], 0)
    assert {file.parent for file in tmp_path.rglob("*.nbi")} == {folder / "__pycache__"}


@pytest.mark.slow
def test_a_package_that_cannot_be_written_to_keeps_it_in_the_users_cache(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (package / "ops" / "crop_mix" / "cpu" / "__pycache__").touch()  # no folder can be made there, by root neither
    assert run(package, cache) == ([20.0], 0)
    assert run(package, cache) == ([20.0], 1)
    assert all(file.is_relative_to(cache) for file in tmp_path.rglob("*.nbi"))


TYPES = ("int16", "int64", "uint8", "float32", "float64")
TOGETHER = """
import os, sys, time
import numpy as np
from added import add

start = time.time() + 1
for name in sys.argv[1:]:
    if not os.fork():
        time.sleep(max(0, start - time.time()))
        assert add(np.ones(3, name)).dtype == name
        os._exit(0)
for _ in sys.argv[1:]:
    assert os.wait()[1] == 0
"""
AFTERWARDS = """
import sys
import numpy as np
from added import add

assert all(add(np.ones(3, name)).dtype == name for name in sys.argv[1:])
print(sum(add.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_processes_that_compile_at_the_same_time_keep_the_code_of_each(tmp_path: Path) -> None:
    header = "from fastaug.ops.crop_mix.cpu.compiler import entry\n\n\n@entry\ndef add(x):\n    "
    (tmp_path / "added.py").write_text(header + "return x + x\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(fastaug.__file__).parents[1])])}
    done = [
        subprocess.run([sys.executable, "-c", code, *TYPES], env=env, capture_output=True, text=True, check=False)
        for code in (TOGETHER, AFTERWARDS)
    ]
    assert [ended.returncode for ended in done] == [0, 0], [ended.stderr for ended in done]
    assert int(done[1].stdout) == len(TYPES)

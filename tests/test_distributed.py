"""What building the accelerator sets for the whole process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.distributed import build_accelerator, choose_kernels
from fastaug.recipe.schema import Recipe, Train

Flags = tuple[bool, bool, str]
ROOT = Path(__file__).resolve().parents[1]


def flags() -> Flags:
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def before() -> Iterator[Flags]:
    """The flags as they were, put back in the end; no accelerator is left behind."""
    found = flags()
    yield found
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = found[:2]
    torch.set_float32_matmul_precision(found[2])
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_kernels_are_chosen_as_the_recipe_says(benchmark: bool, tf32: bool) -> None:
    choose_kernels(Recipe(train=Train(cudnn_benchmark=benchmark, tf32=tf32)))
    assert flags() == (benchmark, tf32, "high" if tf32 else "highest")


def test_both_are_on_by_default_and_touch_nothing_without_a_gpu(before: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe()
    assert (recipe.train.cudnn_benchmark, recipe.train.tf32) == (True, True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    build_accelerator(recipe)
    assert flags() == before


RANK = """
import json, torch
from accelerate import Accelerator
from fastaug.distributed import gathered
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
ids = torch.tensor([[4, 9, 2], [9]][rank])  # of uneven number, one on both
rows = torch.arange(len(ids) * 2, dtype=torch.float64).reshape(-1, 2) + 10 * rank
ids, rows = gathered(accelerator, ids, rows)
if rank == 0:
    print("FOUND" + json.dumps([ids.tolist(), rows.tolist(), str(rows.dtype)]))
accelerator.end_training()
"""


def test_rows_of_any_shape_and_type_are_summed_by_id_over_processes(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    ids, rows, kind = json.loads(ended.stdout.partition("FOUND")[2].splitlines()[0])
    assert dict(zip(ids, rows, strict=True)) == {4: [0, 1], 9: [2 + 10, 3 + 11], 2: [4, 5]}
    assert kind == "torch.float64"

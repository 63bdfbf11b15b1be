"""What building the accelerator sets for the whole process."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.distributed import build_accelerator, check_launch, choose_kernels, launcher_clashes, time_kernels
from fastaug.errors import PeerError
from fastaug.recipe.schema import Model as Network
from fastaug.recipe.schema import Recipe, Train

Flags = tuple[bool, bool, str]


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


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_autocast_leaves_the_environment_alone_which_loaders_threads_read(
    parallel: Literal["ddp", "fsdp2"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else getenv in one of them ends the process with a segmentation fault, once in thousands of updates."""
    accelerator = build_accelerator(Recipe(train=Train(parallel=parallel, precision="bf16")))
    touched: list[bytes] = []
    monkeypatch.setattr(os, "unsetenv", touched.append)
    with accelerator.autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_cache_enabled() == (parallel == "ddp")
    assert touched == []


@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_kernels_are_chosen_as_the_recipe_says(benchmark: bool, tf32: bool) -> None:
    recipe = Recipe(train=Train(cudnn_benchmark=benchmark, tf32=tf32))
    choose_kernels(recipe)
    for again in (True, False):  # cuDNN times its algorithms for sizes that come again alone
        time_kernels(recipe, again=again)
        assert flags() == (benchmark and again, tf32, "high" if tf32 else "highest")


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


def test_rows_of_any_shape_and_type_are_summed_by_id_over_processes(
    tmp_path: Path, in_processes: Callable[..., str]
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    said = in_processes(2, script)
    ids, rows, kind = json.loads(said.partition("FOUND")[2].splitlines()[0])
    assert dict(zip(ids, rows, strict=True)) == {4: [0, 1], 9: [2 + 10, 3 + 11], 2: [4, 5]}
    assert kind == "torch.float64"


SETTINGS = """
import json, torch
from fastaug.distributed import build_accelerator
from fastaug.recipe.schema import Recipe, Train
found = {}
for name, keys in [
    ("plain", {}), ("view", {"gradient_as_bucket_view": True}), ("buckets", {"bucket_cap_mb": 1}),
    ("fp16", {"comm_hook": "fp16"}), ("bf16", {"comm_hook": "bf16"}), ("power_sgd", {"comm_hook": "power_sgd"}),
]:
    accelerator = build_accelerator(Recipe(train=Train(**keys)))
    torch.manual_seed(0)
    layers = [torch.nn.Linear(700, 700) for _ in range(4)]
    model = accelerator.prepare(torch.nn.Sequential(*layers))
    torch.manual_seed(accelerator.process_index)
    for _ in range(3):  # torch divides them anew after the first
        model.zero_grad()
        model(torch.randn(5, 700)).square().mean().backward()
    told = model._get_ddp_logging_data()
    found[name] = {
        "hook": told.get("comm_hook", ""), "buckets": told["num_buckets_reduced"],
        "view": told["gradient_as_bucket_view"], "gradient": layers[0].weight.grad.double().norm().item(),
    }
if accelerator.is_main_process:
    print("FOUND" + json.dumps(found))
accelerator.end_training()
"""


def test_gradients_are_summed_as_the_recipe_says(tmp_path: Path, in_processes: Callable[..., str]) -> None:
    script = tmp_path / "settings.py"
    script.write_text(SETTINGS)
    found = json.loads(in_processes(2, script).partition("FOUND")[2].splitlines()[0])
    plain = found.pop("plain")
    assert (plain["view"], plain["hook"], plain["buckets"]) == (0, "", 2)
    assert found["view"] == {**plain, "view": 1}
    assert found["buckets"]["buckets"] == 4
    assert found["buckets"]["gradient"] == plain["gradient"]
    for name, precision in (("fp16", 1e-3), ("bf16", 1e-2)):
        assert name in found[name]["hook"]
        assert 0 < abs(found[name]["gradient"] / plain["gradient"] - 1) < precision
    assert "powerSGD" in found["power_sgd"]["hook"]
    assert found["power_sgd"]["gradient"] == plain["gradient"]  # of low rank from update 1,000 on


ACCUMULATED = """
import sys
from fastaug.console import Console
from fastaug.distributed import build_accelerator
from fastaug.recipe.reading import read_recipe
from fastaug.training.build import assemble
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
recipe = read_recipe(sys.argv[1])
accelerator = build_accelerator(recipe)
trainer, sums = assemble(recipe, accelerator, RunFolder(recipe.run.dir), Console(False)), []
def hook(group, bucket):
    sums.append(bucket.index())
    return allreduce_hook(group, bucket)
trainer.model.register_comm_hook(None, hook)
trainer.progress.step = 1  # update 0 logs pictures
train_step(trainer, trainer.loader.batches(trainer.order.requests(1, 2)))
if accelerator.is_main_process:
    print("FOUND", len(sums))
accelerator.end_training()
"""


def test_gradients_are_summed_once_an_update_however_many_micro_batches_it_has(
    tmp_path: Path, in_processes: Callable[..., str]
) -> None:
    (tmp_path / "script.py").write_text(ACCUMULATED)
    (tmp_path / "recipe.yaml").write_text(
        f"run: {{dir: {tmp_path}}}\nmodel: {{name: test_resnet}}\n"
        "data: {loader: synthetic, synthetic_images: 48, synthetic_classes: 4, img_size: 32}\n"
        "train: {batch_size: 24, accumulate: 3}\n"
    )
    assert "FOUND 1\n" in in_processes(2, tmp_path / "script.py", tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2"}, True),
        ({"SLURM_NTASKS": "2", "WORLD_SIZE": "2"}, False),
        ({"SLURM_NTASKS": "2", "ACCELERATE_MIXED_PRECISION": "no"}, False),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, False),  # srun --ntasks=1 in a larger job
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
    ],
)
def test_a_scheduler_s_tasks_that_know_nothing_of_each_other_are_refused(
    variables: dict[str, str], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(PeerError, match="is 2: every task would train the whole run alone"):
            check_launch()
    else:
        check_launch()


RECIPE = Recipe(train=Train(precision="bf16", accumulate=2))
LAUNCH = "python accelerate launch"


@pytest.mark.parametrize(
    ("variables", "launcher", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "", ["precision: is 'bf16'", "is 'fp16'; set train.precision=fp16"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "", ["or launch with --mixed_precision bf16"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "", ["is 'fp8'; there is no such train.precision, or launch with"]),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, f"{LAUNCH} --mixed-precision=no a.py", ["'no'; set train.precision=no"]),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "",
            ["train.accumulate: is 2", "is 4; set train.accumulate=4"],
        ),
        ({}, f"{LAUNCH} --gradient_accumulation_steps 8 a.py", ["is 8", "launch with --gradient_accumulation_steps 2"]),
        ({"ACCELERATE_USE_FSDP": "true"}, "", ["ACCELERATE_USE_FSDP: splits the network", "launch without it"]),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "", ["ACCELERATE_USE_DEEPSPEED: splits the network"]),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "", ["ACCELERATE_USE_MEGATRON_LM: splits the network"]),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "", ["ACCELERATE_USE_PARALLELISM_CONFIG: splits the network"]),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "",
            ["model.compile: is false", "'inductor'", "model.compile=true"],
        ),
    ],
)
def test_what_accelerate_wants_otherwise_than_the_recipe_is_told(
    variables: dict[str, str], launcher: str, expected: list[str]
) -> None:
    (problem,) = launcher_clashes(RECIPE, variables, launcher)
    for part in expected:
        assert part in problem


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, ""),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, f"{LAUNCH} --num_processes 2 a.py"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, ""),
        ({"ACCELERATE_USE_FSDP": "false"}, "python fastaug/train.py --mixed_precision no"),
    ],
)
def test_what_accelerate_says_of_itself_or_as_the_recipe_is_no_clash(variables: dict[str, str], launcher: str) -> None:
    assert launcher_clashes(RECIPE, variables, launcher) == []


def test_all_clashes_are_told_at_once() -> None:
    variables = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "EAGER", "ACCELERATE_USE_FSDP": "1"}
    problems = launcher_clashes(Recipe(model=Network(compile=True)), variables)
    assert [problem.partition(":")[0] for problem in problems] == [
        *("train.precision", "ACCELERATE_USE_FSDP", "model.compile")
    ]


MACHINES = """
import json, os, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
os.environ["LOCAL_RANK"] = str(rank % 2)  # as if 0 and 1 were on one machine, 2 and 3 on another
import torch
from fastaug.distributed import build_accelerator, local_main_process_first
from fastaug.errors import DataError
from fastaug.recipe.schema import Data, Recipe, Run
from fastaug.training.build_data import find_data
folder = Path(sys.argv[1])
recipe = Recipe(run=Run(dir=str(folder)), data=Data(root=str(folder / "one"), test_fraction=0.5))
accelerator = build_accelerator(recipe)
with local_main_process_first(accelerator):
    begun = time.time()
    time.sleep(0.5)
    times = [begun, time.time()]
left = time.time()
parts = find_data(recipe, accelerator)
recipe.data.root = str(folder / ("one" if rank < 2 else "two"))  # the second machine's copy is another one
try:
    find_data(recipe, accelerator)
except DataError as error:
    problem = str(error)
(folder / f"{rank}.json").write_text(json.dumps([times, left, len(parts.index), problem]))
accelerator.end_training()
"""


def test_one_process_of_each_machine_indexes_and_all_must_have_found_the_same(
    tmp_path: Path, jpeg_folder: Callable[..., Path], in_processes: Callable[..., str]
) -> None:
    shutil.copytree(jpeg_folder(images=2), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with Image.open(tmp_path / "two" / "class0" / "000.jpg") as image:
        image.resize((20, 20)).save(tmp_path / "two" / "class0" / "000.jpg")
    (tmp_path / "ranks.py").write_text(MACHINES)
    in_processes(4, tmp_path / "ranks.py", tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    (first, *_), (second, *_), (third, *_), (fourth, *_) = found
    assert max(first[0], third[0]) < min(first[1], third[1])  # the machines at the same time
    assert max(first[1], third[1]) <= min(second[0], fourth[0])  # and on each, one before the other
    assert min(left for _, left, *_ in found) >= max(second[1], fourth[1])
    assert [images for *_, images, _ in found] == [4] * 4
    problems = {problem for *_, problem in found}
    assert all("not the same set for all processes: process 2 has 4 images" in problem for problem in problems)


CASTS = """
import sys
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from fastaug.distributed import build_accelerator
from fastaug.recipe.schema import Recipe, Train

class Casts(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, inputs=(), options=None):
        out = operation(*inputs, **(options or {}))
        if out.shape == (6, 6) and out.dtype == torch.bfloat16:
            casts.append(StorageWeakRef(out.untyped_storage()))
        return out

casts = []
network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
accelerator = build_accelerator(Recipe(train=Train(parallel=sys.argv[2], precision="bf16")))
model = accelerator.prepare_model(network, evaluation_mode=True)
network[-1].register_forward_pre_hook(lambda *_: print("alive", len({c.cdata for c in casts if not c.expired()})))
with torch.no_grad(), Casts():
    model(torch.zeros(2, 6))
"""


@pytest.mark.parametrize(("parallel", "alive"), [("ddp", 3), ("fsdp2", 0)])
def test_a_divided_network_s_casts_of_weights_do_not_stay(
    in_processes: Callable[..., str], parallel: str, alive: int
) -> None:
    assert f"alive {alive}\n" in in_processes(1, "-c", CASTS, parallel)

"""The processes of a job: one Accelerator, checked against the launcher; sums, gathers and joint decisions."""

import os
import re
from datetime import timedelta
from importlib.util import find_spec

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env
from torch import Tensor

from fastaug.errors import NonFiniteError, PeerError, RecipeError
from fastaug.recipe.schema import Recipe

SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")  # set by the launcher


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The run's Accelerator (devices, precision, processes); refuses a job whose processes do not see each other."""
    if sharded := [name for name in SHARDED if parse_flag_from_env(name)]:
        raise RecipeError(
            [
                f"{sharded[0]}: splits the network over processes, and fastaug needs the whole one in each, for its "
                "checkpoints and the meta step; launch without it (DistributedDataParallel)"
            ]
        )
    cpu = not torch.cuda.is_available()
    if cpu and recipe.train.precision == "fp16":
        raise RecipeError(["train.precision: fp16 needs a GPU and none is visible; use bf16 or no"])
    missing = [name for name in recipe.run.trackers if find_spec(name) is None]
    if missing:
        raise RecipeError([f"run.trackers: {name} is not installed; pip install {name}" for name in missing])
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=recipe.train.precision,
            log_with=recipe.run.trackers or None,
            project_dir=recipe.run.dir,
            # Long enough for the main process to index a large set alone.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
        )
    except ValueError as error:
        raise PeerError(
            f"the processes cannot be joined: {error}; start them with accelerate launch or torchrun"
        ) from error
    if not cpu:
        choose_kernels(recipe)
    accelerator.gradient_accumulation_steps = 1  # an environment variable must not rescale the loss: train.accumulate
    expected = max(int(os.environ.get("WORLD_SIZE", "1")), _asked_of_launcher())
    if accelerator.num_processes != expected:
        raise PeerError(
            f"the launcher was asked for {expected} processes but this one sees {accelerator.num_processes}; "
            "each would train alone. Start CPU processes with torchrun --nproc-per-node N"
        )
    return accelerator


def choose_kernels(recipe: Recipe) -> None:
    """Sets what train.cudnn_benchmark and train.tf32 ask of a GPU, for the whole process (not yet measured).

    Without TF32 where the meta step takes finite differences, whose steps its ten bits of mantissa would swallow.
    """
    tf32 = recipe.train.tf32 and recipe.meta.engine != "difference"
    torch.backends.cudnn.benchmark = recipe.train.cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def _asked_of_launcher() -> int:
    """N of `accelerate launch --num_processes N`, which on a CPU machine starts one process and says nothing."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    text = " ".join(words)
    asked = re.search(r"accelerate.*--num[_-]processes[ =](\d+)", text)
    return max(1, int(asked[1])) if asked and not re.search(r"--num[_-]machines[ =]([2-9]|\d\d)", text) else 1


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is set on any process; a host sync, so called at log lines only when there are several."""
    if accelerator.num_processes == 1:
        return flag
    votes = torch.tensor(int(flag), device=accelerator.device)
    return bool(accelerator.reduce(votes, reduction="sum").item())


def merged(accelerator: Accelerator, mine: dict[int, str]) -> dict[int, str]:
    """The union of one dictionary of every process; every process must call this."""
    if accelerator.num_processes == 1:
        return dict(mine)
    return dict(sorted(pair for pairs in gather_object([list(mine.items())]) for pair in pairs))


def stop_if_not_finite(accelerator: Accelerator, value: Tensor, what: str, step: int) -> None:
    """Ends every process before the optimizer step when `value` is not finite on any of them; no host sync on a GPU.

    On a GPU the assertion fails on the device, in stream order, and surfaces as a CUDA error (not yet measured).
    """
    finite = torch.isfinite(value).all()
    if accelerator.num_processes > 1:
        votes = finite.to(torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        finite = votes.bool()
    message = f"{what} is not finite in update {step}; lower optim.lr, or set optim.clip_grad"
    if finite.device.type == "cpu":
        if not finite:
            raise NonFiniteError(message)
    else:
        torch._assert_async(finite, message)


def over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor of every process, on the tensor's device."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    on_host = tensor.device.type == "cpu" and "gloo" not in dist.get_backend()
    summed = tensor.cuda() if on_host else tensor.clone()  # NCCL knows devices only
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def gathered(accelerator: Accelerator, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [n] and rows [n, ...] of all processes, each id once, with the sum of its rows."""
    if accelerator.num_processes == 1:
        return ids, rows
    padded_ids = accelerator.pad_across_processes(ids.to(rows.device), pad_index=-1)
    padded_rows = accelerator.pad_across_processes(rows, pad_index=0)
    all_ids, all_rows = accelerator.gather(padded_ids), accelerator.gather(padded_rows)
    real = all_ids >= 0
    unique, position = torch.unique(all_ids[real], return_inverse=True)
    summed = rows.new_zeros(len(unique), *rows.shape[1:])
    return unique, summed.index_add_(0, position, all_rows[real])

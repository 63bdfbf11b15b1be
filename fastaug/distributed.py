"""The processes of a job: one Accelerator, checked against the launcher; sums, gathers and joint decisions."""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    gather_object,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fastaug.errors import PeerError, RecipeError
from fastaug.recipe.schema import Recipe, Train

INDEXING = timedelta(hours=1)  # long enough for one process of a machine to index a large set while the others wait
LAUNCHED = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")  # set by torchrun, by accelerate launch
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")  # of srun: how many processes it starts of one command
SHARDED = tuple(f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"))
HOOKS = {
    "none": DDPCommunicationHookType.NO,
    "fp16": DDPCommunicationHookType.FP16,
    "bf16": DDPCommunicationHookType.BF16,
    "power_sgd": DDPCommunicationHookType.POWER_SGD,
}


def build_accelerator(recipe: Recipe) -> Accelerator:
    """The run's Accelerator (devices, precision, processes); refuses a job whose processes do not see each other."""
    check_launch()
    if clashes := launcher_clashes(recipe, os.environ, _launcher()):
        raise RecipeError(clashes)
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    if cpu and recipe.train.precision == "fp16":
        raise RecipeError(["train.precision: fp16 needs a GPU and none is visible; use bf16 or no"])
    if missing := [name for name in recipe.run.trackers if not _installed(name)]:
        raise RecipeError([f"run.trackers: {name} is not installed; pip install {name}" for name in missing])
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=recipe.train.precision,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.run.peer_timeout)),
                _ddp_settings(recipe.train),
            ],
        )
    except ValueError as error:
        raise PeerError(
            f"the processes cannot be joined: {error}; start them with accelerate launch or torchrun"
        ) from error
    if recipe.train.parallel == "fsdp2":
        accelerator.autocast_handler = UncachedAutocast(cache_enabled=False)
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


def _ddp_settings(train: Train) -> DistributedDataParallelKwargs:
    """What DistributedDataParallel is told; torch's own settings where the recipe says nothing."""
    return DistributedDataParallelKwargs(
        bucket_cap_mb=train.bucket_cap_mb,
        gradient_as_bucket_view=train.gradient_as_bucket_view,
        comm_hook=HOOKS[train.comm_hook],
    )


class UncachedAutocast(AutocastKwargs):
    """No cache of cast weights, which under fsdp2 would keep all of them until a forward pass ends."""

    def to_kwargs(self) -> dict[str, bool]:
        """What torch.autocast is told in every forward pass.

        Accelerate's own method empties the process's environment meanwhile and fills it again. The threads of a loader
        read it at any time (getenv), and the process ends with a segmentation fault, once in thousands of updates.
        """
        return {"cache_enabled": False}


def divides(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether the processes divide the network among them; one alone has it whole."""
    return recipe.train.parallel == "fsdp2" and accelerator.num_processes > 1


def sharding_mesh(accelerator: Accelerator) -> DeviceMesh:
    """All processes, to divide a network over them."""
    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def share_weights(network: nn.Module, device: torch.device) -> None:
    """Gives every process the parameters and buffers of the first one, as DistributedDataParallel does.

    One by one by way of `device`, whatever memory the network is in; every process must call this.
    """
    for own in (*network.parameters(), *network.buffers()):
        sent = own.detach().to(device).contiguous()
        dist.broadcast(sent, 0)
        own.data.copy_(sent)


def finish(accelerator: Accelerator, *, stays_joined: bool = False) -> None:
    """Ends the group of the processes of a run, unless a next run in them is to find it."""
    if not stays_joined:
        accelerator.end_training()


def _installed(tracker: str) -> bool:
    """Whether a tracker's package is there; a folder that one leaves where it is started, `wandb/`, is none."""
    if tracker == "csv":
        return True
    found = find_spec(tracker)
    return found is not None and found.origin is not None


def check_launch() -> None:
    """PeerError where a scheduler starts several tasks of which each would train alone, knowing nothing of the others.

    Within a launcher's processes the launcher's own count decides.
    """
    if any(name in os.environ for name in LAUNCHED):
        return
    name = next((name for name in TASKS if os.environ.get(name, "").isdecimal()), None)
    if name is not None and int(os.environ[name]) > 1:
        raise PeerError(
            f"{name} is {os.environ[name]}: every task would train the whole run alone. Start one task a machine with "
            "a launcher in it (srun --ntasks-per-node=1 torchrun --nproc-per-node N ...), or one task in all"
        )


def choose_kernels(recipe: Recipe) -> None:
    """Sets what train.tf32 asks of a GPU, for the whole process.

    Without TF32 where the meta step takes finite differences, whose steps its ten bits of mantissa would swallow.
    """
    tf32 = recipe.train.tf32 and recipe.meta.engine != "difference"
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def time_kernels(recipe: Recipe, *, again: bool) -> None:
    """Lets cuDNN time its algorithms for batches whose size comes `again`, where train.cudnn_benchmark wants it.

    It does so at every new size: 7 s of a ResNet-50 at 224 px on an H100, for the short last batch of an epoch or one
    with a damaged image.
    """
    torch.backends.cudnn.benchmark = recipe.train.cudnn_benchmark and again


def launcher_clashes(recipe: Recipe, environment: Mapping[str, str], launcher: str = "") -> list[str]:
    """What `accelerate launch`, or the file of `accelerate config`, wants otherwise than the recipe: a problem each.

    Accelerate tells its processes by the `environment`, but not all: `launcher` is the launcher's command line. Its
    mixed_precision "no" is no wish, for it stands there too where nobody said anything, unless it was typed.
    """
    where, problems = "of accelerate launch or its config file is", []
    precision, accumulate = recipe.train.precision, recipe.train.accumulate
    told = environment.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"
    if told != precision and (told != "no" or _option(launcher, "mixed_precision") == "no"):
        change = f"set train.precision={told}" if told in ("no", "bf16", "fp16") else "there is no such train.precision"
        problems.append(
            f"train.precision: is {precision!r} and mixed_precision {where} {told!r}; {change}, or launch with "
            f"--mixed_precision {precision}"
        )
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or _option(
        launcher, "gradient_accumulation_steps"
    )
    if steps and steps != str(accumulate):
        problems.append(
            f"train.accumulate: is {accumulate} and gradient_accumulation_steps {where} {steps}; set train.accumulate="
            f"{steps} (train.batch_size counts all micro-batches), or launch with --gradient_accumulation_steps "
            f"{accumulate}"
        )
    problems += [
        f"{name}: splits the network over processes as the launcher is told, and checkpoints and rules follow the "
        "recipe; launch without it, and set train.parallel=fsdp2 to divide the network"
        for name in SHARDED
        if environment.get(name, "").lower() in ("1", "true", "t", "y", "yes", "on")
    ]
    told = environment.get("ACCELERATE_DYNAMO_BACKEND", "").lower() or "no"
    if told != "no":
        problems.append(
            f"model.compile: is {str(recipe.model.compile).lower()} and dynamo_backend {where} {told!r}; launch with "
            "--dynamo_backend no, and set model.compile=true to compile the network (inductor)"
        )
    return problems


def _option(launcher: str, name: str) -> str | None:
    """The value of --name in a launcher's command line; its words may be joined by _ or -."""
    found = re.search(rf"accelerate.*?--{name.replace('_', '[_-]')}[ =](\S+)", launcher)
    return found[1].lower() if found else None


def _launcher() -> str:
    """The command line of the process that started this one."""
    try:
        return " ".join(psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return ""


def _asked_of_launcher() -> int:
    """N of `accelerate launch --num_processes N`, which on a CPU machine starts one process and says nothing."""
    text = _launcher()
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


def finite_everywhere(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Whether all numbers of `value` are finite on all processes: [] bool, on its device."""
    finite = torch.isfinite(value).all()
    if accelerator.num_processes == 1:
        return finite
    votes = finite.to(torch.int32)
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes.bool()


@contextmanager
def local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Inside, one process of each machine comes before the others there, and nobody goes on before all have been.

    With a patience of its own, longer than that of training, whose processes should answer in minutes.
    """
    if accelerator.num_processes == 1:
        yield
        return
    group = _host_group(INDEXING)
    if not accelerator.is_local_main_process:
        dist.barrier(group)
    yield
    if accelerator.is_local_main_process:
        dist.barrier(group)
    dist.barrier(group)  # those that came second may have had to do it all again
    dist.destroy_process_group(group)


def on_every_process(accelerator: Accelerator, text: str) -> list[str]:
    """A text of every process, by rank; every process must call this."""
    return [text] if accelerator.num_processes == 1 else list(gather_object([text]))


def _host_group(timeout: timedelta) -> dist.ProcessGroup:
    """All processes, joined on their hosts whatever joins their devices; every process must call this."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


class Peers:
    """A line to the other processes beside that of training, to find out which of them does not answer."""

    def __init__(self, accelerator: Accelerator, patience: float = 10) -> None:
        """`patience`: seconds in which a process that lives is to answer."""
        self._patience = patience
        self.hosts = on_every_process(accelerator, socket.gethostname())  # by rank
        self._group = _host_group(timedelta(seconds=60)) if accelerator.num_processes > 1 else None

    def silent(self) -> str | None:
        """Which processes do not answer, in words; None when all do, or this one is alone.

        The main process hears from all of them; the others only whether it answers.
        """
        if self._group is None:
            return None
        try:
            dist.monitored_barrier(self._group, timedelta(seconds=self._patience), wait_all_ranks=True)
        except RuntimeError as error:
            ranks = re.search(r"Ranks ([\d, ]+) failed to pass", str(error))
            if ranks is not None:
                named = ", ".join(f"process {rank} on {self.hosts[int(rank)]}" for rank in ranks[1].split(", "))
                return f"{named} did not answer for {self._patience:g} s; see whether it lives"
            return (
                f"process 0 on {self.hosts[0]} does not answer, or misses another one: its status.json would say which"
            )
        return None


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
    rows = rows.to(accelerator.device)  # of a table on the host: NCCL knows devices only
    padded_ids = accelerator.pad_across_processes(ids.to(rows.device), pad_index=-1)
    padded_rows = accelerator.pad_across_processes(rows, pad_index=0)
    all_ids, all_rows = accelerator.gather(padded_ids), accelerator.gather(padded_rows)
    real = all_ids >= 0
    unique, position = torch.unique(all_ids[real], return_inverse=True)
    summed = rows.new_zeros(len(unique), *rows.shape[1:])
    return unique, summed.index_add_(0, position, all_rows[real])

"""What a run with train.parallel=fsdp2 saves in shares: weights, their moving average, and the optimizer's tensors.

Names are `model.NAME`, `ema.NAME` and `optimizer.I.KEY`, I the number of a parameter in the optimizer's state. A run in
one process, which has the network whole, saves and loads the same files.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastaug.errors import StorageError
from fastaug.training.build import Trainer
from fastaug.training.checkpoint import files_of
from fastaug.training.share_files import read_shares, sizes_in

_WEIGHTS, _OPTIMIZER = ("model.", "ema."), "optimizer."  # how names begin; those of learned tables, otherwise


def is_stored_in_shares(trainer: Trainer) -> bool:
    """Whether checkpoints of this run have a file of each process in place of whole weights."""
    return trainer.recipe.train.parallel == "fsdp2"


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """All tensors of weights, moving average and optimizer, by name: not copied."""
    state = trainer.optimizer.state_dict()["state"]
    stepped = {f"{_OPTIMIZER}{i}.{k}": v for i, own in state.items() for k, v in own.items() if torch.is_tensor(v)}
    return _weights(trainer) | stepped


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    networks = {"model": trainer.network} | ({} if trainer.ema is None else {"ema": trainer.ema.module})
    return {f"{stem}.{name}": value for stem, net in networks.items() for name, value in net.state_dict().items()}


def optimizer_values(trainer: Trainer) -> dict[str, Any]:
    """The optimizer's state without its tensors."""
    state = trainer.optimizer.state_dict()
    plain = {i: {k: v for k, v in own.items() if not torch.is_tensor(v)} for i, own in state["state"].items()}
    return {**state, "state": plain}


def take(trainer: Trainer, path: Path, optimizer: dict[str, Any]) -> None:
    """Takes this process's share of the sound checkpoint folder `path`; `optimizer`: of `optimizer_values`.

    StorageError when the weights are another network's.
    """
    sizes, tensors = sizes_in(path, files_of(path)), _weights(trainer)
    stored = {name: tuple(size.size) for name, size in sizes.items() if name.startswith(_WEIGHTS)}
    if stored != {name: tuple(value.shape) for name, value in tensors.items()}:
        raise StorageError(f"{path}: the checkpoint's weights do not fit the network")
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    state = {number: dict(values) for number, values in optimizer["state"].items()}
    for name in (name for name in sizes if name.startswith(_OPTIMIZER)):
        number, _, key = name.removeprefix(_OPTIMIZER).partition(".")
        size, parameter = sizes[name], parameters[int(number)]
        whole = size.size == parameter.shape  # then it is divided as the parameter is
        like = parameter if whole else torch.empty(size.size)
        state[int(number)][key] = tensors[name] = torch.zeros_like(like, dtype=size.properties.dtype)
    read_shares(path, tensors)
    trainer.optimizer.load_state_dict({**optimizer, "state": state})

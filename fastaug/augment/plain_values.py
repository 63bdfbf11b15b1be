"""A module's parameters as plain lists of numbers and back, by name, with a word for whatever does not fit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastaug.recipe.policy_file import SOUND

SAME = "take the file of a run that learned the same part, as it wrote it"


def plain_values(module: nn.Module) -> dict[str, Any]:
    """Every parameter as a number or nested list of numbers, by its name."""
    return {name: parameter.detach().double().tolist() for name, parameter in module.named_parameters()}


@torch.no_grad()
def load_plain_values(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Sets the parameters of `module` to `values`; ValueError says which one does not fit, before any is set."""
    parameters = dict(module.named_parameters())
    if missing := sorted(parameters.keys() - values.keys()):
        raise ValueError(f"values.{missing[0]}: is missing, and this part has it; {SAME}")
    if unknown := sorted(values.keys() - parameters.keys()):
        own = ", ".join(parameters)
        raise ValueError(f"values.{unknown[0][:100]}: is no parameter of this part, which has {own}; {SAME}")
    loaded = {name: _tensor(name, values[name], parameter) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.copy_(loaded[name])


def _tensor(name: str, value: Any, like: Tensor) -> Tensor:
    try:
        found = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"values.{name}: {error}; it must be numbers of shape {list(like.shape)}") from None
    if found.shape != like.shape:
        raise ValueError(f"values.{name}: has shape {list(found.shape)}, and {list(like.shape)} is needed; {SAME}")
    found = found.to(like.dtype)
    if not found.isfinite().all():
        raise ValueError(f"values.{name}: is not finite as {like.dtype}; {SOUND}")
    return found

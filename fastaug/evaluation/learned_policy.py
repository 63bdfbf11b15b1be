"""What the run of a checkpoint has learned that acts on images, for test-time augmentation."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastaug.data.build import DataParts
from fastaug.errors import StorageError
from fastaug.meta.learned_part import Setting
from fastaug.meta.parameters import LearnedParts, parts_on_images
from fastaug.meta.reuse import reused_parts
from fastaug.nets.optim import build_optimizer
from fastaug.recipe.schema import Recipe


def learned_policy(
    path: Path, recipe: Recipe, parts: DataParts, network: nn.Module, state: dict[str, Any], device: torch.device
) -> LearnedParts | None:
    """What the checkpoint `path`, whose state is `state`, has learned that acts on images; None if nothing does.

    StorageError where it does not hold what its recipe learns.
    """
    if not recipe.meta.learn and recipe.meta.reuse is None:
        return None
    labels = None if parts.index is None else torch.from_numpy(parts.index.labels)
    images, optimizer = 0 if labels is None else len(labels), build_optimizer(recipe.optim, network)
    setting = Setting(recipe, images, len(parts.classes), optimizer, device, labels=labels)
    if recipe.meta.reuse is not None:
        return reused_parts(setting, {state["data"]}, lambda _: state, lambda _: None)
    try:
        return parts_on_images(setting, state["meta"]["learned"])
    except (LookupError, RuntimeError) as error:
        raise StorageError(f"{path}: does not hold the policy that its recipe learns ({error})") from error

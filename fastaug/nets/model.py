"""timm models, and those of zoo.py: by name, with weights, a stem for small images, and their moving average."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.initial_weights import Fit, ignored, initial_weights
from fastaug.nets.recomputing import use_checkpoints
from fastaug.nets.zoo import offer_to_timm
from fastaug.recipe.schema import SMALLEST_BATCH, Model

_STEM = "conv1.weight"


def build_model(
    model: Model, num_classes: int, tell: Callable[[Fit], None] = ignored, *, channels: int = 3
) -> nn.Module:
    """A timm model of images with `channels` and `num_classes` outputs; RecipeError names a wrong name or file.

    `tell` hears how the weights of model.initial_checkpoint fit.
    """
    kwargs = dict(model.kwargs)
    # Passed only when set: not every network takes them.
    kwargs |= {k: v for k, v in (("drop_rate", model.drop), ("drop_path_rate", model.drop_path)) if v}
    kwargs |= {} if channels == 3 else {"in_chans": channels}
    offer_to_timm()
    try:
        network = timm.create_model(model.name, pretrained=model.pretrained, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        if model.pretrained:
            remedy = "without the hub, set model.pretrained to false and model.initial_checkpoint to a file of weights"
            raise RecipeError([f"model.pretrained: no weights for {model.name}: {error}; {remedy}"]) from error
        raise RecipeError([f"model.name: {model.name} cannot be built: {error}"]) from error
    replaced = model.stem == "small" and has_small_stem(network, model)
    if replaced:
        _use_small_stem(network, model.name)
    if model.initial_checkpoint is not None:
        weights, fit = initial_weights(network, model)
        network.load_state_dict(weights, strict=False)
        tell(fit)
    if model.stem == "small" and not replaced:
        _use_small_stem(network, model.name)
    if model.grad_checkpointing:
        use_checkpoints(network, model.name)
    if model.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def check_pass(network: nn.Module, model: Model, img_size: int, classes: int, channels: int = 3) -> None:
    """RecipeError unless images of `img_size` give `classes` outputs; `network` is on the meta device: costs no memory.

    A network that looks at values, which a meta tensor has not, cannot be judged so, and passes.
    """
    try:
        with torch.no_grad():
            found = network(torch.zeros(SMALLEST_BATCH, channels, img_size, img_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
            return
        given = f"model.kwargs: with {model.kwargs}, {model.name}" if model.kwargs else f"data.img_size: {model.name}"
        reason = " ".join(str(error).split())
        kind = "RGB" if channels == 3 else f"{channels}-channel"
        text = f"{given} does not take {kind} images of {img_size} x {img_size} pixels ({reason})"
        raise RecipeError([f"{text}; change data.img_size, eval.img_size or model.kwargs"]) from error
    shape = list(getattr(found, "shape", ()))
    if shape != [SMALLEST_BATCH, classes]:
        text = f"gives {shape or type(found).__name__} for {SMALLEST_BATCH} images, not [{SMALLEST_BATCH}, {classes}]"
        remedy = "leave out of model.kwargs what changes its outputs, or choose another model.name"
        raise RecipeError([f"model.kwargs: with {model.kwargs}, {model.name} {text}; {remedy}"])


def stem_of(model: Model, classes: int) -> Literal["default", "small"]:
    """The stem that the initial weights of a network with the default stem were trained with."""
    if model.initial_checkpoint is None:
        return "default"
    network = build_model(replace(model, initial_checkpoint=None), classes)
    known = isinstance(getattr(network, "conv1", None), nn.Module) and hasattr(network, "maxpool")
    return "small" if known and has_small_stem(network, model) else "default"


def has_small_stem(network: nn.Module, model: Model) -> bool:
    """Whether the initial weights are of a network whose stem was replaced as well, which they then fit."""
    if model.initial_checkpoint is None:
        return False
    small = deepcopy(network)
    _use_small_stem(small, model.name)
    try:
        _, fit = initial_weights(small, model)
    except RecipeError:
        return False
    return _STEM not in (*fit.missing, *fit.reshaped)


def _use_small_stem(network: nn.Module, name: str) -> None:
    """3x3 convolution of stride 1 and no pooling (He et al., arXiv:1512.03385, section 4.2), for 28 to 64 pixels."""
    stem = getattr(network, "conv1", None)
    if not (isinstance(stem, nn.Module) and isinstance(getattr(network, "maxpool", None), nn.Module)):
        raise RecipeError([f"model.stem: small needs a ResNet-like network (conv1, maxpool); {name} has none"])
    convolutions = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    first, last = convolutions[0], convolutions[-1]
    network.conv1 = nn.Conv2d(first.in_channels, last.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def synchronised(network: nn.Module, processes: int, device: torch.device) -> nn.Module:
    """`network` with BatchNorm over the batches of all processes; itself where there is one."""
    if processes == 1:
        return network
    if device.type == "cpu":
        raise RecipeError(["model.sync_bn: torch synchronises BatchNorm on GPUs alone; turn it off"])
    found: nn.Module = convert_sync_batchnorm(network)
    return found


def build_ema(model: Model, network: nn.Module, *, foreach: bool = True) -> ModelEmaV3 | None:
    """timm's moving average of `network`, if the recipe wants one; without `foreach` tensor by tensor."""
    if not model.ema:
        return None
    return ModelEmaV3(network, decay=model.ema_decay, use_warmup=model.ema_warmup, foreach=foreach)

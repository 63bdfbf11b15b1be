"""timm models: by name, with weights from the hub or a file, a stem for small images, and their moving average."""

import pickle

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from timm.utils import ModelEmaV3
from torch import nn

from fastaug.errors import RecipeError
from fastaug.recipe.schema import Model


def build_model(model: Model, num_classes: int) -> nn.Module:
    """A timm model with `num_classes` outputs; RecipeError names a wrong name, argument or file."""
    kwargs = dict(model.kwargs)
    # Passed only when set: not every network takes them.
    kwargs |= {k: v for k, v in (("drop_rate", model.drop), ("drop_path_rate", model.drop_path)) if v}
    try:
        network = timm.create_model(model.name, pretrained=model.pretrained, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        if model.pretrained:
            raise RecipeError([f"model.pretrained: no weights for {model.name}: {error}"]) from error
        raise RecipeError([f"model.name: {model.name} cannot be built: {error}"]) from error
    if model.initial_checkpoint is not None:
        _load_initial(network, model.initial_checkpoint)
    if model.stem == "small":
        _use_small_stem(network, model.name)
    if model.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def _load_initial(network: nn.Module, file: str) -> None:
    """Loads the weights in `file`; a head for another number of classes is left as it was initialised."""
    key = "model.initial_checkpoint"
    try:
        weights = load_state_dict(file)
    except FileNotFoundError:
        raise RecipeError([f"{key}: no file {file}"]) from None
    except (OSError, RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise RecipeError([f"{key}: {file} holds no weights that can be read: {error!r}"]) from error
    own = network.state_dict()
    heads = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    wrong = [name for name in own if name not in weights or weights[name].shape != own[name].shape]
    lost = [name for name in wrong if not name.startswith(heads)]
    if lost:
        found = f"{len(lost)} of {len(own)} tensors are missing or of another shape, the first {lost[0]}"
        raise RecipeError([f"{key}: {file} does not fit this network: {found}"])
    network.load_state_dict({name: weights[name] for name in own if name not in wrong}, strict=False)


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


def build_ema(model: Model, network: nn.Module) -> ModelEmaV3 | None:
    """timm's moving average of `network`, if the recipe wants one."""
    if not model.ema:
        return None
    return ModelEmaV3(network, decay=model.ema_decay, use_warmup=model.ema_warmup)

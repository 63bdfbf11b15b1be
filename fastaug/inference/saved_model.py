"""A trained network from a run folder or one of its checkpoints, with its transform and class names: `fastaug.load`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from timm.models import clean_state_dict
from torch import Tensor, nn
from torchvision.transforms import v2  # type: ignore[import-untyped]

from fastaug.data.channel_files import reads_channels
from fastaug.data.image_files import Colour, eight_bits, pixels_of
from fastaug.data.loaders.grey import grey
from fastaug.errors import RecipeError, StorageError
from fastaug.nets.model import build_model
from fastaug.training import checkpoint
from fastaug.training.model_facts import ModelFacts, Preprocessing, read_facts

Kind = Literal["raw", "ema"]
Which = Literal["last", "best"]
_STEMS = {"raw": "model", "ema": "ema"}


class LoadedModel(NamedTuple):
    """A trained network in eval mode, the transform from an image to its input [C, S, S], and its outputs' names.

    Images are PIL's; arrays [H, W, C] of uint8 or uint16 for a network of other channels than 1 and 3.
    """

    model: nn.Module
    transform: Callable[[Any], Tensor]
    classes: tuple[str, ...]


def load(path: str | os.PathLike[str], *, weights: Kind | None = None, which: Which = "last") -> LoadedModel:
    """The network of a run folder or of one of its checkpoints, `path`: (model, transform, classes).

    `model`: a timm network in evaluation mode, [N, C, S, S] to logits [N, classes]. `transform`: from a PIL image to
    its input [C, S, S], normalised. `classes`: names of its outputs, in order.

    `weights`: "raw" or "ema", their moving average; None: those of the recipe's headline (eval.weights). `which`: the
    "last" or the "best" checkpoint of a run folder. The network has one output for each class: the one of
    augment.other_class is cut off. StorageError, RecipeError when there is no such network.
    """
    found = find_checkpoint(Path(path), which)
    facts = read_facts(found)
    return LoadedModel(network_of(found, facts, weights), transform_of(facts.preprocessing), facts.classes)


def find_checkpoint(path: Path, which: Which = "last") -> Path:
    """The checkpoint folder that `path` is, or that `which` names in the run folder `path`; StorageError if none."""
    if (path / "manifest.json").is_file():
        return path
    folder = path / "checkpoints"
    if not folder.is_dir():
        raise StorageError(
            f"{path}: neither a run folder nor a checkpoint of one; name a run folder, or a checkpoints/step-* in it"
        )
    last, warnings = checkpoint.latest(folder)
    if last is None:
        reason = warnings[0] if warnings else "it has none yet"
        raise StorageError(f"{path}: no checkpoint can be used: {reason}; train longer, or name another run")
    if which == "last":
        return last
    best = read_facts(last).best_step
    if best is None:
        remedy = "take the last one, or train with data.select_fraction or a select/ folder"
        raise StorageError(f"{path}: has no best checkpoint, for nothing was selected; {remedy}")
    return folder / checkpoint.name_of(best)


def kind_of(facts: ModelFacts, weights: Kind | None) -> Kind:
    """The weights that are meant: those asked for, or those of the recipe's headline."""
    kind: Kind = weights or facts.recipe.eval.weights
    return kind


def network_of(path: Path, facts: ModelFacts, weights: Kind | None = None) -> nn.Module:
    """The network in the checkpoint folder `path`, in eval mode, one output a class, with timm's `pretrained_cfg`."""
    recipe, kind = facts.recipe, kind_of(facts, weights)
    bare = untrained(facts)
    network: Any = build_model(bare.model, len(facts.classes), channels=bare.data.channels)
    state = tensors_of(path, kind)
    own = network.state_dict()
    if recipe.augment.other_class:
        heads = _heads(network)
        state = {
            name: t[: len(own[name])] if name in own and name.startswith(heads) else t for name, t in state.items()
        }
    apart = [
        name
        for name in {**own, **state}
        if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if apart:
        text = f"{path}: its weights are not those of {recipe.model.name} with {len(facts.classes)} classes"
        found = f"{len(apart)} tensors are missing, too many or of another shape, the first {apart[0]}"
        raise StorageError(f"{text}: {found}; is model.json of another checkpoint, or timm of another version?")
    network.load_state_dict(state)
    network.pretrained_cfg = pretrained_cfg(network, facts)
    network.eval()
    trained: nn.Module = network
    return trained


def untrained(facts: ModelFacts) -> Any:
    """The recipe without what would fetch or read initial weights, which the checkpoint's replace."""
    from dataclasses import replace

    model = replace(facts.recipe.model, pretrained=False, initial_checkpoint=None)
    return replace(facts.recipe, model=model)


def tensors_of(path: Path, kind: Kind) -> dict[str, Tensor]:
    """The weights of one kind in the checkpoint folder `path`; RecipeError where it has no moving average."""
    try:
        weights = checkpoint.weights_of(path, _STEMS[kind])
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be loaded: {error}; choose another checkpoint") from error
    if not weights:
        raise RecipeError([f"weights: {path} has no moving average (model.ema was off); take raw"])
    return dict(clean_state_dict(weights))


def _heads(network: nn.Module) -> tuple[str, ...]:
    """The beginnings of the names of a timm network's classifier weights."""
    named = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{head}." for head in ([named] if isinstance(named, str) else named))


def pretrained_cfg(network: nn.Module, facts: ModelFacts, *, names: bool = True) -> dict[str, Any]:
    """What timm notes of trained weights, for these: its transforms and loaders then prepare images as they need.

    `names`: with the names of the outputs, which a config.json has elsewhere.
    """
    prepared = facts.preprocessing
    whole = prepared.crop == "whole"
    before = dict(getattr(network, "pretrained_cfg", {}))
    stale = {"url", "hf_hub_id", "file", "source", "tag", "license", "origin_url", "paper_name", "paper_ids", "notes"}
    kept = {key: value for key, value in before.items() if key not in stale and not key.startswith("test_")}
    kept.pop("label_names", None)
    return kept | {
        **({"label_names": facts.classes} if names else {}),
        "num_classes": len(facts.classes),
        "input_size": prepared.input_size,
        "crop_mode": "squash" if whole else "center",
        "crop_pct": 1.0 if whole else prepared.crop_pct,
        "interpolation": prepared.interpolation,
        "mean": prepared.mean,
        "std": prepared.std,
        "pool_size": None,  # of the features at the size of the weights that timm knows
    }


class ToPixels(nn.Module):
    """A PIL image as uint8 RGB [3, H, W]: of whatever mode, as the loader decodes its file."""

    def __init__(self, exif: str, background: Colour | None) -> None:
        super().__init__()
        self.exif, self.background = exif, background

    def forward(self, image: Image.Image) -> Tensor:
        """uint8 [3, H, W]."""
        return torch.from_numpy(pixels_of(image, self.exif, self.background).copy()).permute(2, 0, 1)


class ChannelsToPixels(nn.Module):
    """An image of n channels as uint8 [C, H, W]: an array [H, W, C], or with `channels` 4 a PIL image, as its RGBA."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, image: Any) -> Tensor:
        """uint8 [C, H, W]; ValueError for an image of other channels or another type."""
        if isinstance(image, Image.Image) and self.channels == 4:
            image = image.convert("RGBA")
        pixels = np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != self.channels or pixels.dtype not in (np.uint8, np.uint16):
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise ValueError(
                f"the network takes uint8 or uint16 arrays [height, width, {self.channels}], found {found}"
            )
        return torch.from_numpy(eight_bits(pixels).copy()).permute(2, 0, 1)


def transform_of(prepared: Preprocessing) -> v2.Compose:
    """The transform of evaluation, from a PIL image to the network's input [C, S, S] float32.

    For n channels it takes arrays [H, W, C].
    It resizes by the kernel that the loader uses, so pixels are equal wherever Pillow decodes as DALI does.
    """
    side, kernel = prepared.img_size, v2.InterpolationMode(prepared.interpolation)
    cut: list[nn.Module] = [v2.Resize([side, side], kernel)]
    if prepared.crop != "whole":
        cut = [v2.Resize(prepared.short_side, kernel), v2.CenterCrop(side)]
    if prepared.channels == 1:
        cut.append(v2.Lambda(lambda pixels: grey(pixels.permute(1, 2, 0)).permute(2, 0, 1)))
    numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(prepared.mean), list(prepared.std))]
    several = reads_channels(prepared.channels)
    pixels = ChannelsToPixels(prepared.channels) if several else ToPixels(prepared.exif, prepared.background)
    return v2.Compose([pixels, *cut, *numbers])

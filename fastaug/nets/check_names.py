"""The part of --check that needs torch and timm: do model, weights and optimizer exist, fit, and take the images?"""

import difflib
from dataclasses import replace

import timm
import torch
from timm.optim import list_optimizers
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.initial_weights import initial_weights
from fastaug.nets.model import build_model, check_pass, has_small_stem
from fastaug.nets.optim import build_optimizer
from fastaug.nets.zoo import offer_to_timm
from fastaug.recipe.schema import Model, Recipe

CLASSES = 10  # any number: a check knows no data


def _problem(key: str, value: str, known: list[str]) -> list[str]:
    if value in known:
        return []
    close = difflib.get_close_matches(value, known, n=3)
    return [f"{key}: {value!r} is not known to timm" + (f"; did you mean {' or '.join(close)}?" if close else "")]


def check_names(recipe: Recipe) -> None:
    """RecipeError with every problem; model and optimizer are built, and images passed, without memory for weights."""
    problems = []
    offer_to_timm()
    if ":" not in recipe.model.name:  # one from the hub or a folder says there what it is
        model_name = recipe.model.name.split(".")[0]  # behind the dot is the tag of pretrained weights
        problems += _problem("model.name", model_name, timm.list_models())
    problems += _problem("optim.opt", recipe.optim.opt.lower(), list_optimizers())
    if not problems and ":" not in recipe.model.name:
        for check in (_check_network, _check_initial_weights):
            try:
                check(recipe)
            except RecipeError as error:
                problems += error.problems
    if problems:
        raise RecipeError(problems)


def _check_network(recipe: Recipe) -> None:
    network = check_shapes(recipe, CLASSES)
    build_optimizer(recipe.optim, network)


def _check_initial_weights(recipe: Recipe) -> None:
    if recipe.model.initial_checkpoint is not None:
        network = _on_meta(replace(recipe.model, stem="default"), CLASSES, recipe.data.channels)
        if recipe.model.stem != "small" or not has_small_stem(network, recipe.model):
            initial_weights(network, recipe.model)


def check_shapes(recipe: Recipe, outputs: int) -> nn.Module:
    """The network without weights, on the meta device, when images of the sizes of the recipe go through it."""
    network = _on_meta(recipe.model, outputs, recipe.data.channels)
    for side in dict.fromkeys([*recipe.sides(), recipe.eval.img_size or recipe.data.img_size]):
        check_pass(network, recipe.model, side, outputs, recipe.data.channels)
    return network


def _on_meta(model: Model, outputs: int, channels: int) -> nn.Module:
    with torch.device("meta"):
        return build_model(replace(model, pretrained=False, initial_checkpoint=None), outputs, channels=channels)

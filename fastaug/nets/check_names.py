"""The part of --check that needs torch and timm: do model, optimizer and processes' settings exist and fit?"""

import difflib

import timm
import torch
from timm.optim import list_optimizers

from fastaug.errors import RecipeError
from fastaug.nets.model import build_model
from fastaug.nets.optim import build_optimizer
from fastaug.recipe.schema import Recipe


def _problem(key: str, value: str, known: list[str]) -> list[str]:
    if value in known:
        return []
    close = difflib.get_close_matches(value, known, n=3)
    return [f"{key}: {value!r} is not known to timm" + (f"; did you mean {' or '.join(close)}?" if close else "")]


def check_names(recipe: Recipe) -> None:
    """RecipeError with every unknown name; builds model and optimizer without memory for their weights."""
    model_name = recipe.model.name.split(".")[0]  # behind the dot is the tag of pretrained weights
    problems = _problem("model.name", model_name, timm.list_models())
    problems += _problem("optim.opt", recipe.optim.opt.lower(), list_optimizers())
    if not problems:
        plain = type(recipe.model)(**{**vars(recipe.model), "pretrained": False, "initial_checkpoint": None})
        try:
            with torch.device("meta"):
                network = build_model(plain, num_classes=10)
            build_optimizer(recipe.optim, network)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)

"""Values of a recipe that are left to the network: `auto`, from what timm knows of how its weights were trained.

They are resolved before anything reads the recipe, so that a run folder, a check and a prediction see numbers. Only a
recipe that has one imports timm here, and with it torch.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fastaug.atomic_files import open_regular
from fastaug.errors import RecipeError
from fastaug.recipe.network_names import ZOO

KEYS = ("img_size", "mean", "std", "crop_pct", "interpolation")  # of data
AUTO, LOCAL = "auto", "local-dir:"
LARGEST_CONFIG = 2**22  # bytes; one with the names of 21,000 classes takes one million


class Preprocessing(NamedTuple):
    """How images reach a network, and of whose weights: what `resolve_data_config` of timm says."""

    source: str
    values: dict[str, Any]


def tell(text: str) -> None:
    """Says `text` on the screen, once a job, beside what goes to standard output."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def wanted(values: Any) -> list[str]:
    """The keys of `data` in a recipe's values that are auto."""
    data = values.get("data") if isinstance(values, dict) else None
    return [key for key in KEYS if isinstance(data, dict) and isinstance(data.get(key), str) and data[key] == AUTO]


def resolve(values: Any, name: str) -> tuple[str | None, list[str]]:
    """Puts numbers in place of every `auto` in `values`, for the network `name`; what to say of it, and problems.

    A key that cannot be resolved is taken out.
    """
    keys = wanted(values)
    if not keys:
        return None, []
    data = values["data"]
    try:
        found = preprocessing(name)
    except RecipeError as error:
        for key in keys:
            del data[key]
        others = f" (also {', '.join(keys[1:])})" if keys[1:] else ""
        return None, [f"data.{keys[0]}: auto{others}: {problem}" for problem in error.problems]
    problems, told = [], []
    for key in keys:
        data[key] = found.values[key]
        told.append(f"{key} = {data[key]}")
        if problem := _unusable(key, data[key]):
            problems.append(f"data.{key}: auto is {data[key]} for {name}, {problem}; write the value you want")
            del data[key]
    source = f"as {found.source} was trained (timm's pretrained_cfg, for which torch was loaded)"
    return f"auto: data: {', '.join(told)}, {source}", problems


def preprocessing(name: str) -> Preprocessing:
    """What timm knows of the weights of network `name`, its tag counts; of `local-dir:FOLDER`, what config.json says.

    Nothing is fetched: a network of the hub says what it wants there alone. RecipeError where nothing is known.
    """
    from timm.data import resolve_data_config

    if name in ZOO:  # whether timm knows it by now or not
        raise RecipeError([f"model.name: {name} comes without trained weights; write the values of your images"])
    if ":" in name and not name.startswith(LOCAL):
        raise RecipeError([f"model.name: {name} is known on the hub alone; write the values of its config.json"])
    known = _of_folder(Path(name.removeprefix(LOCAL))) if name.startswith(LOCAL) else _of_timm(name)
    config = resolve_data_config({}, pretrained_cfg=known)
    _, height, width = config["input_size"]
    values = {"img_size": height if height == width else [height, width], "interpolation": config["interpolation"]}
    values |= {"crop_pct": float(config["crop_pct"])}
    values |= {key: [float(value) for value in config[key]] for key in ("mean", "std")}
    return Preprocessing(f"{known['architecture']}.{known['tag']}" if known.get("tag") else name, values)


def _of_timm(name: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    try:
        known: dict[str, Any] = get_pretrained_cfg(name, allow_unregistered=False).to_dict()
    except RuntimeError as error:
        raise RecipeError(
            [f"model.name: timm does not know {name!r} ({error}); write the value, or another name"]
        ) from None
    return known


def _of_folder(folder: Path) -> dict[str, Any]:
    """The pretrained_cfg in config.json of a folder in the layout of the hub."""
    try:
        with open_regular(folder / "config.json") as file:
            known: dict[str, Any] = json.loads(file.read(LARGEST_CONFIG))["pretrained_cfg"]
        return {**known, "tag": None}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = f"{folder / 'config.json'} cannot be read ({error!r})"
        raise RecipeError([f"model.name: {reason}; write the values, or name a folder in the hub's layout"]) from None


def _unusable(key: str, value: Any) -> str | None:
    if key == "img_size" and not isinstance(value, int):
        return "which is no square"
    if key == "interpolation" and value not in ("bilinear", "bicubic"):
        return "which loaders here do not have"
    return None

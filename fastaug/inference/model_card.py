"""The model card of an exported network: README.md, as hubs show it, and as people read it."""

import json
import re
import shlex
from dataclasses import asdict
from typing import Any

from fastaug.inference.exports import Exported
from fastaug.inference.prediction_files import readable
from fastaug.provenance import versions
from fastaug.recipe.network_names import ZOO
from fastaug.recipe.schema import Recipe
from fastaug.recipe.strict_yaml import write_yaml
from fastaug.training.model_facts import ModelFacts

_FIGURES = ("top1", "top5", "balanced_top1", "mean_ap", "f1_micro", "f1_macro", "nll", "ece")
_PATHS = {
    **{"run": ("dir", "plant_like"), "data": ("root", "table", "class_map", "labels", "splits"), "meta": ("reuse",)},
    **{"model": ("initial_checkpoint",), "distill": ("checkpoint",)},
}
# Keys that a name or a file can stand in; only a file is of the machine.
_FILES = {
    **{"augment": ("aa", "class_weight"), "meta": ("operations",)},
    **{"model": ("checkpoint_keys",), "distill": ("checkpoint_keys",)},
}
_SHOWN = 100  # names of classes in the card; all of them are in config.json


def model_card(exported: Exported, forms: list[str], found: dict[str, float]) -> str:
    """The text; `found`: how far the outputs of each form were from the network's when it was read back."""
    facts = exported.facts
    return "\n".join(
        [
            *_head(facts),
            *_result(exported),
            *_how_to_load(exported, forms),
            *_preprocessing(facts),
            *_classes(facts),
            *_files(found),
            "## Recipe\n",
            "What differs from fastaug's defaults; `fastaug/train.py` trains it on a `data.root`.\n",
            "```yaml",
            write_yaml(shown_recipe(facts.recipe)).strip(),
            "```\n",
            "Versions: " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".",
            "",
        ]
    )


def _head(facts: ModelFacts) -> list[str]:
    front = {"library_name": "timm", "pipeline_tag": "image-classification", "tags": ["image-classification", "timm"]}
    name = facts.recipe.model.name
    whose = "fastaug" if name in ZOO else "timm"
    return [
        "---",
        write_yaml(front).strip(),
        "---\n",
        f"# {name}, {len(facts.classes)} classes\n",
        f"An image classifier, {whose}'s `{name}`, trained with fastaug for {facts.step} updates.\n",
    ]


def _result(exported: Exported) -> list[str]:
    figures = exported.facts.figures_of(exported.weights)
    if figures is None:
        return ["## Result\n", f"Not known for these weights ({exported.weights}) at this update.\n"]
    split = figures.get("split", "test")
    rows = [f"| {name} | {figures[name]:.4f} |" for name in _FIGURES if name in figures]
    return [
        "## Result\n",
        f"On the {split} split, {exported.weights} weights:\n",
        "| figure | value |",
        "|---|---|",
        *rows,
        "",
    ]


def _how_to_load(exported: Exported, forms: list[str]) -> list[str]:
    hub = [*_LOAD_HUB[:2], *_OFFER, *_LOAD_HUB[2:]] if exported.facts.recipe.model.name in ZOO else _LOAD_HUB
    kinds = {"hub": hub, "timm": _load_timm(exported.facts), "onnx": _LOAD_ONNX, "torch": _LOAD_TORCH}
    return ["## How to load it\n", *(line for form in forms for line in kinds[form])]


_LOAD_HUB = [
    "```python",
    "import timm",
    'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"',
    "transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))",
    'names = model.pretrained_cfg["label_names"]',
    "```\n",
]
_OFFER = ["from fastaug.nets.zoo import offer_to_timm", "offer_to_timm()  # timm does not have this network"]
_LOAD_ONNX = [
    "```python",
    "import onnxruntime",
    'session = onnxruntime.InferenceSession("model.onnx")',
    'logits = session.run(["logits"], {"images": images})[0]  # normalised, float32 [N, C, S, S]',
    'names = session.get_modelmeta().custom_metadata_map["classes"]  # JSON',
    "```\n",
]
_LOAD_TORCH = [
    "```python",
    "import torch",
    'notes = {"classes": ""}',
    'model = torch.export.load("model.pt2", extra_files=notes).module()',
    'names = notes["classes"]  # JSON',
    "```\n",
]


def _load_timm(facts: ModelFacts) -> list[str]:
    return ["timm's validation script, on a folder of class folders:\n", f"    {validate_command(facts)}\n"]


def validate_command(facts: ModelFacts) -> str:
    """The command by which timm's validate.py evaluates model_best.pth.tar as we do."""
    prepared = facts.preprocessing
    whole = prepared.crop == "whole"
    numbers = {name: " ".join(map(str, getattr(prepared, name))) for name in ("input_size", "mean", "std")}
    given = [f"{name}={value}".replace(" ", "") for name, value in facts.recipe.model.kwargs.items()]
    words = [
        "python validate.py --data-dir IMAGES --split SPLIT --class-map class_map.txt",
        f"--model {facts.recipe.model.name} --checkpoint model_best.pth.tar --num-classes {len(facts.classes)}",
        f"--input-size {numbers['input_size']} --crop-mode {'squash' if whole else 'center'}",
        f"--crop-pct {1.0 if whole else prepared.crop_pct}",
        f"--interpolation {prepared.interpolation} --mean {numbers['mean']} --std {numbers['std']}",
    ]
    return " ".join(words) + (f" --model-kwargs {shlex.join(given)}" if given else "")


def _preprocessing(facts: ModelFacts) -> list[str]:
    prepared = facts.preprocessing
    side = prepared.img_size
    cut = f"resized to {side} x {side} pixels, whatever their shape"
    if prepared.crop != "whole":
        cut = f"short side to {prepared.short_side} pixels, then the middle {side} x {side}"
    numbers = [f"{name} {', '.join(map(str, getattr(prepared, name)))}" for name in ("mean", "std")]
    rest = f"{prepared.channels} channels, pixels in [0, 1], {'; '.join(numbers)}; EXIF rotation: {prepared.exif}."
    told = [f"Images: {cut} ({prepared.interpolation}, antialiased); {rest}\n"]
    if prepared.background is not None:
        colour = ", ".join(map(str, prepared.background))
        told.append(
            f"Transparent pixels lie on the colour ({colour}); timm's transforms do not do this: do it before.\n"
        )
    if prepared.channels == 1:
        told.append('Grey images: open them by `Image.open(FILE).convert("L")`.\n')
    if facts.recipe.data.multi_label != "off":
        told.append("Several classes an image: the probability of each is the sigmoid of its output.\n")
    return ["## Preprocessing\n", *told]


def _classes(facts: ModelFacts) -> list[str]:
    names = [f"{output}: {readable(name)}" for output, name in enumerate(facts.classes[:_SHOWN])]
    more = len(facts.classes) - len(names)
    return ["## Classes\n", *(f"- {name}" for name in names), *([f"- and {more} more"] if more else []), ""]


def _files(found: dict[str, float]) -> list[str]:
    rows = [f"| {form} | {apart:.2g} |" for form, apart in found.items()]
    told = "Outputs for noise, read back by the library of each form, against fastaug's, at most apart by:\n"
    return ["## Checked\n", told, "| form | difference |", "|---|---|", *rows, ""]


def _is_file(value: Any) -> bool:
    """Whether a key's value is the path of a file, and not the name of what comes with a library."""
    return isinstance(value, str) and re.search(r"^file:|/|\.[a-z]+$", value) is not None


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """The keys that differ from the defaults, without paths of the machine that it was trained on."""
    values, defaults = asdict(recipe), asdict(Recipe())
    files = [(section, name) for section, names in _PATHS.items() for name in names]
    perhaps = [(section, name) for section, names in _FILES.items() for name in names]
    files += [(section, name) for section, name in perhaps if _is_file(values[section][name])]
    for section, name in files:
        del values[section][name]
    changed = {
        section: {name: value for name, value in keys.items() if value != defaults[section][name]}
        for section, keys in values.items()
    }
    return {section: json.loads(json.dumps(keys)) for section, keys in changed.items() if keys}

"""A trained network in the forms of other programs: timm's hub layout and checkpoint, ONNX, torch.export.

Each form is read back by the program that it is for, and its outputs are compared with the network's: a form that does
not give the same is refused.
"""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn

from fastaug.errors import FastaugError, RecipeError
from fastaug.inference.prediction_files import readable
from fastaug.inference.saved_model import pretrained_cfg
from fastaug.inference.timm_files import args_yaml, class_map, summary_csv, timm_args
from fastaug.recipe.network_names import ZOO
from fastaug.training.model_facts import ModelFacts

LARGEST_DIFFERENCE = 1e-5  # of outputs, in units of the largest one where that is above 1
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What is exported: the network in eval mode on the host, what is known of it, and the run folder if it has one."""

    network: nn.Module
    facts: ModelFacts
    run: Path | None
    weights: str  # "raw" or "ema"

    def probe(self, count: int) -> Tensor:
        """`count` normalised images of noise [N, C, S, S], always the same."""
        prepared = self.facts.preprocessing
        drawn = np.random.Generator(np.random.Philox(key=count)).random((count, *prepared.input_size))
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (prepared.mean, prepared.std))
        return (torch.from_numpy(drawn).float() - mean) / std

    def notes(self) -> dict[str, str]:
        """What a file of one network alone has to say beside it, as texts."""
        prepared = self.facts.preprocessing
        return {
            "classes": json.dumps([readable(name) for name in self.facts.classes]),
            "preprocessing": json.dumps({**asdict(prepared), "channels": prepared.channels}),
        }


def write_forms(forms: list[str], exported: Exported, folder: Path) -> dict[str, float]:
    """Writes each of `forms` into `folder`; the largest difference of its outputs when it was read back.

    RecipeError where a form cannot hold the network, FastaugError where it does not give its outputs.
    """
    found = {}
    for form in forms:
        write, read = FORMS[form]
        try:
            write(exported, folder)
            found[form] = _difference(exported, read(exported, folder))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            text = f"--to {form}: {exported.facts.recipe.model.name} cannot be written so ({reason})"
            raise FastaugError(f"{text}; leave {form} out") from error
        if not found[form] <= LARGEST_DIFFERENCE:
            text = f"--to {form}: what was written gives other outputs than the network, by {found[form]:.3g}"
            raise FastaugError(f"{text} (at most {LARGEST_DIFFERENCE:g} is taken for rounding); leave {form} out")
    return found


@torch.no_grad()
def _difference(exported: Exported, read: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of outputs at two sizes of a batch, relative to the largest output above 1."""
    worst = 0.0
    for count in (1, 3):
        images = exported.probe(count)
        ours = exported.network(images)
        apart = (read(images) - ours).abs().max() / ours.abs().max().clamp(min=1)
        worst = max(worst, float(apart))  # NaN is caught by the caller: it is not <=
        if not np.isfinite(worst) or not torch.isfinite(apart):
            return float("nan")
    return worst


def check_forms(forms: list[str], facts: ModelFacts) -> None:
    """RecipeError with each form that this network, or this installation, cannot be written in."""
    problems = []
    model, own = facts.recipe.model, sorted({"hub", "timm"} & set(forms))
    if model.stem != "default" and own:
        text = f"--to {' '.join(own)}: timm has no {model.name} with model.stem = {model.stem}, so it could not load it"
        problems.append(f"{text}; take onnx or torch, or fastaug.load")
    if "timm" in forms and model.name in ZOO:
        text = f"--to timm: timm's scripts do not have {model.name}, which comes with fastaug"
        problems.append(f"{text}; take hub, onnx or torch, or fastaug.load")
    missing = [name for name in ONNX_NEEDS if find_spec(name) is None] if "onnx" in forms else []
    if missing:
        problems.append(f"--to onnx: {', '.join(missing)} not installed; pip install 'fastaug[export]'")
    if "timm" in forms and facts.recipe.data.multi_label != "off":
        problems.append("--to timm: its validate.py counts one label an image; take hub, onnx or torch")
    if "timm" in forms and (odd := [name for name in facts.classes if name != name.strip() or "\n" in name]):
        problems.append(f"--to timm: class {odd[0]!r} begins or ends with a blank, which class_map.txt cannot say")
    if problems:
        raise RecipeError(problems)


# ---- hub layout: config.json, model.safetensors ----


def write_hub(exported: Exported, folder: Path) -> None:
    """timm's layout of a model repository, which timm.create_model loads from the hub or a folder."""
    network = deepcopy(exported.network).to(memory_format=torch.contiguous_format)
    described: Any = network
    described.pretrained_cfg = pretrained_cfg(network, exported.facts, names=False)
    names = [readable(name) for name in exported.facts.classes]
    arguments = dict(exported.facts.recipe.model.kwargs)
    if (channels := exported.facts.preprocessing.channels) != 3:
        arguments["in_chans"] = channels
        described.pretrained_cfg["first_conv"] = None  # or timm adapts its weights as if they were of 3 channels
    save_for_hf(network, folder, {"label_names": names}, model_args=arguments, safe_serialization=True)


def read_hub(exported: Exported, folder: Path) -> Callable[[Tensor], Tensor]:
    """The network as timm loads it; FastaugError when it says other names or preprocessing."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    said, prepared = timm.data.resolve_data_config({}, model=network), exported.facts.preprocessing
    for key in ("input_size", "mean", "std", "interpolation"):
        if (value := said[key] if isinstance(said[key], str) else tuple(said[key])) != getattr(prepared, key):
            raise FastaugError(f"--to hub: timm reads {key} = {value}, not {getattr(prepared, key)}; leave hub out")
    loaded: Callable[[Tensor], Tensor] = network
    return loaded


# ---- what timm's training script leaves: model_best.pth.tar, args.yaml, summary.csv ----


def write_timm(exported: Exported, folder: Path) -> None:
    """A checkpoint as timm's scripts read it, its arguments and log, and the order of classes for --class-map."""
    facts = exported.facts
    figures = facts.figures_of(exported.weights) or {}
    state = {name: tensor.contiguous() for name, tensor in exported.network.state_dict().items()}
    saved = {
        "epoch": max(0, round(facts.epoch) - 1) if facts.epoch == facts.epoch else None,  # timm counts from 0
        "arch": facts.recipe.model.name,
        "state_dict": state,
        "args": timm_args(facts),  # timm's script saves a Namespace, which torch.load takes for code
        "version": 2,
        "metric": 100 * figures["top1"] if "top1" in figures else None,
    }
    torch.save(saved, folder / "model_best.pth.tar")
    (folder / "args.yaml").write_bytes(args_yaml(facts))
    (folder / "summary.csv").write_bytes(summary_csv(facts, exported.run))
    (folder / "class_map.txt").write_bytes(class_map(facts))


def read_timm(exported: Exported, folder: Path) -> Callable[[Tensor], Tensor]:
    """The network as timm's validate.py builds and loads it."""
    recipe, classes = exported.facts.recipe, len(exported.facts.classes)
    channels = exported.facts.preprocessing.channels
    network = timm.create_model(recipe.model.name, num_classes=classes, in_chans=channels, **recipe.model.kwargs)
    timm.models.load_checkpoint(network, str(folder / "model_best.pth.tar"), use_ema=False)
    loaded: Callable[[Tensor], Tensor] = network.eval()
    return loaded


# ---- ONNX ----


def write_onnx(exported: Exported, folder: Path) -> None:
    """model.onnx: from normalised "images" [N, C, S, S] to "logits" [N, classes], N free; names are in its metadata."""
    import onnx

    network, batch = _for_tracing(exported), torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        network,
        (exported.probe(2),),
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, exported.notes())
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def read_onnx(_: Exported, folder: Path) -> Callable[[Tensor], Tensor]:
    """The network in onnxruntime, on the CPU."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


# ---- torch.export ----


def write_torch(exported: Exported, folder: Path) -> None:
    """model.pt2, which torch.export.load reads without timm or fastaug; names are in its extra files."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(_for_tracing(exported), (exported.probe(2),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2", extra_files=exported.notes())


def read_torch(_: Exported, folder: Path) -> Callable[[Tensor], Tensor]:
    """The network as torch loads it."""
    module: Callable[[Tensor], Tensor] = torch.export.load(folder / "model.pt2").module()
    return module


def _for_tracing(exported: Exported) -> nn.Module:
    """A copy of the network whose first argument alone is traced."""
    return deepcopy(exported.network).to(memory_format=torch.contiguous_format)


Form = tuple[Callable[[Exported, Path], None], Callable[[Exported, Path], Callable[[Tensor], Tensor]]]
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "hub": (write_hub, read_hub),
        "timm": (write_timm, read_timm),
        "onnx": (write_onnx, read_onnx),
        "torch": (write_torch, read_torch),
    }
)

"""Initial weights from a local file: read without running code, renamed, fitted to a network, the misfits told."""

import argparse
import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models import adapt_input_conv
from torch import Tensor, nn

from fastaug.errors import RecipeError
from fastaug.nets.key_maps import packaged, read_map, renamed
from fastaug.nets.parameter_names import head_prefixes
from fastaug.recipe.schema import Model

KEY = "model.initial_checkpoint"
# Where trainers keep weights in what they save, the best for inference first: timm, DINO, detectron, Lightning, torch's
# tutorials.
ENTRIES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
)
WRAPPERS = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel, torch.compile, Lightning and many others
SHOWN = 5  # names in a line
_UNREADABLE = (
    *(OSError, RuntimeError, KeyError, EOFError, ValueError, AttributeError, TypeError, IndexError),
    *(ArithmeticError, AssertionError, struct.error, pickle.UnpicklingError, SafetensorError),
    MemoryError,  # of a length field that is broken
)


@dataclass(frozen=True)
class Fit:
    """How weights of a file fit a network, by the names of tensors; what is not listed was taken.

    `entry`: of the file that they are in, "" for its top. `head`: the classifier's tensors, if they are new.
    `changed`: what was adapted.
    """

    file: str
    entry: str
    taken: int
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    head: list[str]
    changed: list[str]

    @property
    def share(self) -> float:
        """Tensors that fit, of all that either the file or the network has; the classifier does not count."""
        misfits = len(self.missing) + len(self.unexpected) + len(self.reshaped)
        return self.taken / max(1, self.taken + misfits)

    def lines(self) -> list[str]:
        """The report, a line for each kind."""
        source = self.file + (f" ({self.entry})" if self.entry else "")
        kinds = {
            "not in the file, so new": self.missing,
            "in the file alone, so left out": self.unexpected,
            "of another shape, so new": self.reshaped,
            "new head": self.head,
            "adapted": self.changed,
        }
        told = [f"    {kind}: {_some(names)}" for kind, names in kinds.items() if names]
        return [f"initial weights: {self.taken} tensors of {source}, {self.share:.0%} fit", *told]

    def as_dict(self) -> dict[str, Any]:
        """For status.json: counts, and the first names of each kind."""
        kinds = {name: value for name, value in asdict(self).items() if isinstance(value, list)}
        told = {name: {"count": len(value), "first": value[:SHOWN]} for name, value in kinds.items()}
        return {"file": self.file, "entry": self.entry, "taken": self.taken, "share": round(self.share, 4), **told}


def ignored(fit: Fit) -> None:
    """Nobody wants to know how the weights fit."""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{more}"


def initial_weights(network: nn.Module, model: Model) -> tuple[dict[str, Tensor], Fit]:
    """The weights that `network` takes of the file that `model` names, and how they fit; RecipeError if too few do.

    In this order: names mapped by model.checkpoint_keys, wrappers' prefixes off, the network's own filter of timm for
    weights under the names of their paper (`checkpoint_filter_fn`), the first convolution adapted to other channels.
    """
    assert model.initial_checkpoint is not None
    file = model.initial_checkpoint
    raw, entry = read_weights(file)
    taken, fit = _under(model.checkpoint_keys, network, raw, file, entry)
    if not taken or fit.share < model.checkpoint_fit:
        told = "; ".join(line.strip() for line in fit.lines()[1:])
        others = [name for name in packaged() if name != model.checkpoint_keys]
        maps = " or ".join(name for name in others if _share_under(name, network, raw, file) >= model.checkpoint_fit)
        raise RecipeError(
            [
                f"{KEY}: {file} does not fit {model.name}: {fit.share:.0%} of the tensors do, model.checkpoint_fit "
                f"asks for {model.checkpoint_fit:.0%}; {told}. If they are another network's, set model.name to it; if "
                f"they have other names, set model.checkpoint_keys{', to ' if maps else ''}{maps}; if the rest may be "
                "new, lower model.checkpoint_fit"
            ]
        )
    return taken, fit


def _under(
    keys: str | dict[str, str] | None, network: nn.Module, raw: dict[str, Tensor], file: str, entry: str
) -> tuple[dict[str, Tensor], Fit]:
    """What `network` takes of the weights `raw` under the map `keys`, and how they fit."""
    own = network.state_dict()
    found = raw if keys is None else renamed(raw, read_map(keys))
    found = _filtered(network, _unwrapped(found, own), file)
    found, changed = _adapted(network, own, found)
    taken = {name: found[name] for name in own if name in found and found[name].shape == own[name].shape}
    return taken, _fit(network, own, found, file=file, entry=entry, changed=changed)


def _share_under(name: str, network: nn.Module, raw: dict[str, Tensor], file: str) -> float:
    """The share of tensors that fit under the packaged map `name`; 0 where it is of other names."""
    try:
        return _under(name, network, raw, file, "")[1].share
    except RecipeError:
        return 0.0


def read_weights(file: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, and the entry that they are in; of a folder, its model.safetensors.

    Nothing but tensors and plain values is loaded: a file from elsewhere may hold code that would run. RecipeError
    when it holds anything else, or no weights.
    """
    path = Path(file).expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    if path.match("shard-*.safetensors") or (not path.exists() and any(path.parent.glob("shard-*.safetensors"))):
        remedy = "make one file of them (fastaug export RUN --to timm), and name that"
        raise RecipeError([f"{KEY}: {file} has shares of several processes (train.parallel=fsdp2); {remedy}"])
    try:
        content = _loaded(path)
    except FileNotFoundError:
        raise RecipeError(
            [
                f"{KEY}: no file {path}; name a file of weights, or a folder with "
                "model.safetensors (of a run: checkpoints/step-N in it)"
            ]
        ) from None
    except _UNREADABLE as error:
        if isinstance(error, pickle.UnpicklingError):
            reason = "more than tensors and plain values, or no weights at all; save its state_dict, as .safetensors"
            raise RecipeError([f"{KEY}: {file} is not loaded: it holds {reason}"]) from error
        raise RecipeError([f"{KEY}: {file} holds no weights that can be read: {error!r}"]) from error
    entry = ""
    if isinstance(content, Mapping) and not _tensors(content):
        entries = [name for name in ENTRIES if isinstance(content.get(name), Mapping) and _tensors(content[name])]
        entry, content = (entries[0], content[entries[0]]) if entries else ("", content)
    weights = _tensors(content) if isinstance(content, Mapping) else {}
    if not weights:
        held = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, Mapping) else type(content).__name__
        raise RecipeError([f"{KEY}: {file} holds no weights by name, but {held}; save the network's state_dict"])
    return weights, entry


def _loaded(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments, in what timm's script saves
        return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _unwrapped(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` without the prefixes of WRAPPERS, in any order, unless the network has such names itself."""
    prefixes = [prefix for prefix in WRAPPERS if not any(name.startswith(prefix) for name in own)]
    while prefix := next((p for p in prefixes if any(name.startswith(p) for name in weights)), None):
        bare = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        weights = {name: value for name, value in weights.items() if not name.startswith(prefix)} | bare
    return weights


def _filtered(network: nn.Module, weights: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """`weights` through the network's own filter, which knows how others name and shape them, where timm has one."""
    own: Callable[..., Any] | None = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if own is None:
        return weights
    try:
        return _tensors(own(dict(weights), network))
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        kind = type(network).__name__
        raise RecipeError(
            [f"{KEY}: {file}: timm's filter for {kind} does not know these weights ({error!r}); change model.name"]
        ) from error


def _adapted(
    network: nn.Module, own: Mapping[str, Tensor], weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """`weights` with a first convolution for the network's number of channels, by timm's rule; what was changed."""
    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv") or ()
    changed = []
    for name in (f"{module}.weight" for module in ([first] if isinstance(first, str) else first)):
        found, wanted = weights.get(name), own.get(name)
        if found is None or wanted is None or found.shape == wanted.shape or found.ndim != 4 or found.shape[1] != 3:
            continue
        fitted = adapt_input_conv(wanted.shape[1], found)
        if fitted.shape == wanted.shape:
            weights = {**weights, name: fitted}
            changed.append(f"{name} from 3 to {wanted.shape[1]} channels")
    return weights, changed


def _fit(
    network: nn.Module,
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    file: str,
    entry: str,
    changed: list[str],
) -> Fit:
    heads = head_prefixes(network)
    body = [name for name in own if not name.startswith(heads)]
    new_head = [name for name in own if name.startswith(heads) and not _same(found.get(name), own[name])]
    return Fit(
        file=file,
        entry=entry,
        taken=sum(_same(found.get(name), own[name]) for name in body),
        missing=[name for name in body if name not in found and not name.endswith("num_batches_tracked")],
        unexpected=[name for name in found if name not in own and not name.startswith(heads)],
        reshaped=[_shapes(name, found, own) for name in body if name in found and not _same(found[name], own[name])],
        head=[_shapes(name, found, own) if name in found else name for name in new_head],
        changed=changed,
    )


def _same(found: Tensor | None, own: Tensor) -> bool:
    return found is not None and found.shape == own.shape


def _shapes(name: str, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return f"{name} ({list(found[name].shape)} in the file, {list(own[name].shape)} here)"

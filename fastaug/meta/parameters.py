"""The learned parts of a run, all that meta.learn names, behind one interface."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fastaug.augment.learned_effects import LearnedEffects, Soften, View
from fastaug.errors import RecipeError
from fastaug.meta.evidence import Observation
from fastaug.meta.learned_part import LearnedPart, Revision, Setting
from fastaug.meta.sample_tables import SampleTable, StoredTable
from fastaug.targets import SoftTarget

# Where each name of meta.learn is found, in the order in which parts act; others are written as module:Class.
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "policy": "fastaug.meta.parts.policy:SharedPolicyPart",
        "augmenter": "fastaug.meta.parts.augmenter:AugmenterPart",
        "sample_policy": "fastaug.meta.parts.sample_policy:SamplePolicy",
        "softness": "fastaug.meta.parts.softness:Softness",
        "smoothing": "fastaug.meta.parts.smoothing:Smoothing",
        "optim": "fastaug.meta.parts.inner_rates:InnerRates",
        "weights": "fastaug.meta.parts.weights:SampleWeights",
        "labels": "fastaug.meta.parts.labels:SampleLabels",
        "instant_labels": "fastaug.meta.reweighting:InstantLabels",
        "instant_weights": "fastaug.meta.reweighting:InstantWeights",
    }
)
# Names in checkpoints of 0.1.0, which had no class for a part.
_RENAMED = {
    "policy.": "policy.policy.",
    "softness.raw": "softness.k.raw",
    "smoothing.raw": "smoothing.share.raw",
    "optim.": "optim.rates.",
    "weights.weight": "weights.table.weight",
}


class LearnedParts(LearnedEffects, nn.Module):
    """The learned parts of a run, by name; they act on a batch one after the other."""

    def __init__(self, parts: Mapping[str, LearnedPart], kinds: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.kinds = dict(kinds or {name: name for name in parts})  # as meta.learn has them
        self.acts_on_images = any(part.acts_on_images for part in parts.values())
        self.observes = any(part.observes for part in parts.values())
        self.acts_on_updates = any(not part.on_batch for part in parts.values())
        self.scheduled_rate = 0.0  # the network's learning rate in this update before anything learned changes it
        names = [name for part in parts.values() for name in part.tables()]
        if len(set(names)) < len(names):
            raise RecipeError([f"meta.learn: two parts keep a table of one name, among {', '.join(names)}"])

    def each(self) -> dict[str, LearnedPart]:
        """Each learned part by its name."""
        return dict(self.parts.items())  # type: ignore[arg-type]

    def shared(self, *, on_batch: bool = False) -> dict[str, Tensor]:
        """The shared parameters by name, "part.parameter"; with `on_batch` those that act on the training loss."""
        parts = {name: part for name, part in self.each().items() if part.on_batch or not on_batch}
        named = {f"{name}.{own}": p for name, part in parts.items() for own, p in part.named_parameters()}
        return {name: p for name, p in named.items() if p.requires_grad}

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the meta-optimizer, one for each part that has any, with a learning rate of its own."""
        groups = [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": part.lr, "name": name}
            for name, part in self.each().items()
        ]
        return [group for group in groups if group["params"]]

    def tables(self) -> dict[str, SampleTable]:
        """All tables by name."""
        return {name: table for part in self.each().values() for name, table in part.tables().items()}

    def stored_tables(self) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
        """Of each table with a file of its own, by name: its rows under their names in the state, and which changed."""
        prefixes = {module: prefix for prefix, module in self.named_modules()}
        return {
            name: ({f"{prefixes[table]}.{own}": v for own, v in table.state_dict().items() if v.ndim}, table.changed)
            for name, table in self.tables().items()
            if isinstance(table, StoredTable)
        }

    # ---- effect on a batch ----

    def begin(self, *, looked_at: bool) -> None:
        """Tells each part before an update whether a meta step looks at its samples, and after it that none does."""
        for part in self.each().values():
            part.begin(looked_at=looked_at)

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The rows [n, ...] of `ids` [n] in the tables of all parts, by table name."""
        return {name: row for part in self.each().values() for name, row in part.rows(ids).items()}

    def images(self, images: Tensor, view: View) -> Tensor:
        """Images changed by all parts in turn."""
        for part in self.each().values():
            images = part.images(images, view)
        return images

    def log_probability(self, view: View) -> Tensor | None:
        """Log probability [N] of what all parts drew: their sum, as they draw independently; None if none draws."""
        drawn = [chance for part in self.each().values() if (chance := part.log_probability(view)) is not None]
        return None if not drawn else torch.stack(drawn).sum(0) if len(drawn) > 1 else drawn[0]

    def soften(self, soften: Soften) -> Soften:
        """Settings of softening, changed by all parts in turn."""
        for part in self.each().values():
            soften = part.soften(soften)
        return soften

    def target(self, target: SoftTarget, view: View) -> SoftTarget:
        """Targets changed by all parts in turn."""
        for part in self.each().values():
            target = part.target(target, view)
        return target

    def smoothing(self, smoothing: float | Tensor) -> float | Tensor:
        """The share of label smoothing, changed by all parts in turn."""
        for part in self.each().values():
            smoothing = part.smoothing(smoothing)
        return smoothing

    def observe(self, view: View, seen: Observation, over_processes: Callable[[Tensor], Tensor]) -> None:
        """Tells each part what an update has shown of the first n samples of `view`."""
        for part in self.each().values():
            part.observe(view, seen, over_processes)

    # ---- effect on the update ----

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets what is learned about the optimizer's settings, after the schedule has set the learning rate."""
        for part in self.each().values():
            part.set_rates(optimizer)

    def scheduled(self, set_rate: Callable[[int], float], optimizer: torch.optim.Optimizer) -> Callable[[int], float]:
        """The schedule `set_rate`, update (from 0) -> learning rate, followed by what is learned about rates."""

        def set_learned_rate(update: int) -> float:
            self.scheduled_rate = set_rate(update)
            self.set_rates(optimizer)
            rate: float = optimizer.param_groups[0]["lr"]
            return rate

        return set_learned_rate

    def rates_on_graph(self, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Settings of the optimizer's groups in one update, with what is learned about them on the graph."""
        for part in self.each().values():
            settings = part.rates_on_graph(settings)
        return settings

    def revise(self, revision: Revision) -> Revision:
        """The target revised by all instant parts in turn."""
        for part in self.each().values():
            revision = part.revise(revision)
        return revision

    # ---- what is told ----

    def penalty(self, kind: str) -> Tensor:
        """The regulariser of all parts: a number on their graph."""
        penalties = [part.penalty(kind) for part in self.each().values()]
        given = [penalty for penalty in penalties if penalty is not None]
        if not given:
            raise RecipeError([f"meta.regulariser: no learned part has one called {kind}; choose start or none"])
        return torch.stack([penalty.to(given[0].device) for penalty in given]).sum()

    @torch.no_grad()
    def summaries(self) -> dict[str, dict[str, float]]:
        """The summary of each part, by its name; host sync."""
        return {name: part.summary() for name, part in self.each().items()}

    def per_sample(self) -> dict[str, Tensor]:
        """Learned numbers of all ids, [images] each, by name."""
        return {name: values for part in self.each().values() for name, values in part.per_sample().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Continues from a `state_dict`, those of 0.1.0 included."""
        if not any(name.startswith("parts.") for name in state_dict):
            state_dict = {_present_name(name): value for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, *args, **kwargs)


def _present_name(name: str) -> str:
    old = next(old for old in _RENAMED if name.startswith(old))
    return f"parts.{_RENAMED[old]}{name.removeprefix(old)}"


def build_parts(setting: Setting) -> LearnedParts:
    """The parts that a recipe learns, in the order of PARTS, those from outside behind them."""
    meta = setting.recipe.meta
    order = [*(name for name in PARTS if name in meta.learn), *(name for name in meta.learn if name not in PARTS)]
    names = [name.rpartition(":")[2] for name in order]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError([f"meta.learn: {meta.learn} has two parts called {twice[0]}; rename one of the classes"])
    kinds = dict(zip(names, order, strict=True))
    return LearnedParts({name: build_part(kind, setting) for name, kind in kinds.items()}, kinds)


def parts_on_images(setting: Setting, state: Mapping[str, Any]) -> LearnedParts | None:
    """The parts of a recipe that change images, with their values in `state`, which is that of all parts."""
    parts = {name: part for name, part in build_parts(setting).each().items() if part.acts_on_images}
    if not parts:
        return None
    renamed = {name if name.startswith("parts.") else _present_name(name): value for name, value in state.items()}
    found = LearnedParts(parts)
    found.load_state_dict({name: value for name, value in renamed.items() if name.split(".")[1] in parts})
    return found


def build_part(name: str, setting: Setting) -> LearnedPart:
    """The part called `name` in meta.learn; RecipeError where a class from outside cannot be found or built."""
    module, _, kind = PARTS.get(name, name).partition(":")
    key, options = f"meta.learn: {name}", setting.recipe.meta.parts.get(name, {})
    try:
        found: Any = import_module(module)
    except ImportError as error:
        raise RecipeError(
            [f"{key}: cannot be imported: {error}; install it, or add its folder to PYTHONPATH"]
        ) from error
    found = getattr(found, kind, None)
    if not (inspect.isclass(found) and issubclass(found, LearnedPart)):
        raise RecipeError([f"{key}: {module} has no subclass of fastaug.meta.learned_part.LearnedPart of that name"])
    try:
        build: Callable[..., LearnedPart] = found
        part = build(setting, **options)
    except (TypeError, ValueError) as error:
        took = f"{kind}{inspect.signature(found)}"
        raise RecipeError([f"meta.parts: {name}: {options}: cannot be built: {error}; it is {took}"]) from error
    learns = any(p.requires_grad for p in part.parameters())
    if learns and not (isinstance(part.lr, (int, float)) and part.lr >= 0):
        raise RecipeError(
            [f"{key}: has parameters and lr = {part.lr!r}; pass a number of 0 or more to super().__init__"]
        )
    return part

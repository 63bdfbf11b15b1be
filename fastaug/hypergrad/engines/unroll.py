"""Hypergradients of K updates: training is repeated on autograd's graph and differentiated through all of them.

Truncated back-propagation through time: the K updates begin at known weights and optimizer state, which count as
constants. Exact for what it unrolls; K = 1 is the hypergradient of the one-step engines. Memory holds K graphs while
gradients are computed, and a copy of weights and optimizer state from one window to the next. For one process.

SGD goes through `higher`. Nothing else does: its Adam adds eps before the bias correction where torch adds it after, it
has no AdamW, LAMB or SGDW, and it says itself that the gradients of its RMSprop are wrong. All these go through their
functional updates (functional_updates.py).
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from fastaug.hypergrad.functional_updates import (
    Settings,
    State,
    bare_optimizer,
    clipped,
    group_settings,
    own_clipping,
    present_state,
    update_of,
)
from fastaug.hypergrad.problem import Cotangent, Losses, Samples, Weights, detached, eager_logits, pull_back
from fastaug.targets import SoftTarget

with warnings.catch_warnings():
    # What Python says of higher 0.2.1 when it compiles it for the first time: a comparison by `is`, a stray backslash.
    for category in (SyntaxWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", '"is" with|.*invalid escape sequence', category)
    from higher.optim import DifferentiableSGD

Groups = Sequence[Settings]  # the settings of every parameter group
Forward = Callable[[Tensor], Tensor]  # images -> logits at the weights after the last update
_Replay = Callable[[Tensor, Weights, Groups], Weights]  # loss, weights on its graph, settings -> weights after


@dataclass(frozen=True)
class _Update:
    """One update of a window; what is learned acts on it through `samples` and `settings`."""

    samples: Callable[[], Samples]
    seed: int
    total: int
    settings: Callable[[], Groups]


class Window:
    """A window of updates: K consecutive ones of training, kept so that they can be differentiated.

    Made before the first of them: it copies the trained weights and the optimizer's state as they are then. ValueError
    for an optimizer, or settings of one, whose updates have no definition here (see `update_of`).
    """

    def __init__(self, optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        bare = bare_optimizer(optimizer)
        self._definition, self._by_higher, self._own_clipping = update_of(bare), type(bare) is SGD, own_clipping(bare)
        names = {p: name for name, p in named_parameters if p.requires_grad}
        trained = [[p for p in group["params"] if p in names] for group in bare.param_groups]
        self._groups = [[names[p] for p in group] for group in trained]
        self._weights = {names[p]: p.detach().clone() for group in trained for p in group}
        self._states: dict[str, State] = {
            names[p]: present_state(bare, group, p)
            for group, moved in zip(bare.param_groups, trained, strict=True)
            for p in moved
        }
        self._updates: list[_Update] = []

    def __len__(self) -> int:
        """Updates so far."""
        return len(self._updates)

    def add(
        self,
        samples: Callable[[], Samples],
        *,
        seed: int,
        total: int,
        settings: Groups | Callable[[], Groups],
    ) -> None:
        """Appends an update to the window, one that trained on sum_i losses_i / total.

        `samples` is asked for when gradients are: all samples of the update, on the graph of what is learned. `seed`:
        of its dropout masks. `settings`: optimizer.param_groups as they were in this update (`present_settings`); lr,
        momentum, weight_decay and betas may be tensors on the graph of learned rates.
        """
        if not callable(settings):
            settings = _constant([group_settings(group) for group in settings])
        self._updates.append(_Update(samples, seed, total, settings))

    def gradients(
        self,
        network: nn.Module,
        losses: Losses,
        v: Weights,
        parameters: Mapping[str, Tensor],
        *,
        max_norm: float | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> dict[str, Tensor]:
        """d <v, w_K> / d parameters by their names, w_K the weights after the window.

        With v the gradient of the validation loss at w_K this is the hypergradient. `max_norm`: training clips its
        gradients to this global norm. Weights, buffers, .grad and optimizer stay as they are, and so do generators.
        ValueError: an empty window, a v of other names than the trained weights.
        """
        if v.keys() != self._weights.keys():
            odd = sorted(v.keys() ^ self._weights.keys())
            raise ValueError(f"v and the window's weights differ in {len(odd)} names: {', '.join(odd[:5])}")

        def along(weights: Weights) -> Tensor:
            return torch.stack([(v[name] * weight).sum() for name, weight in weights.items()]).sum()

        return self.gradients_of(along, network, losses, parameters, max_norm=max_norm, autocast=autocast)

    def gradients_of(
        self,
        value: Callable[[Weights], Tensor],
        network: nn.Module,
        losses: Losses,
        parameters: Mapping[str, Tensor],
        *,
        max_norm: float | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> dict[str, Tensor]:
        """`gradients` of any scalar function of the weights after the window; it may depend on parameters itself."""
        if not self._updates:
            raise ValueError("there is no update to differentiate; add at least one")
        samples = [update.samples() for update in self._updates]
        leaves = _leaves(samples)
        with torch.enable_grad():
            weights = {name: weight.detach().requires_grad_() for name, weight in self._weights.items()}
            replay = self._through_higher(max_norm) if self._by_higher else self._through_definition(max_norm)
            for update, leaf in zip(self._updates, leaves, strict=True):
                logits = eager_logits(network, weights, leaf.images, update.seed, autocast, twice=True)
                loss = losses(logits, leaf.target).sum() / update.total
                weights = replay(loss, weights, update.settings())
            result = value(weights)
        return _differentiated(result, samples, leaves, parameters)

    def _through_definition(self, max_norm: float | None) -> _Replay:
        states = dict(self._states)

        def replay(loss: Tensor, weights: Weights, settings: Groups) -> Weights:
            leaves = list(weights.values())
            found: Sequence[Tensor | None] = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            if max_norm is not None:
                found = clipped(found, max_norm)
            if self._own_clipping is not None:
                found = clipped(found, self._own_clipping, margin=0.0)
            gradients, after = dict(zip(weights, found, strict=True)), dict(weights)
            for names, group in zip(self._groups, settings, strict=True):
                for name in names:
                    gradient = gradients[name]
                    if gradient is not None:
                        after[name], states[name] = self._definition(weights[name], gradient, states[name], group)
            return after

        return replay

    def _through_higher(self, max_norm: float | None) -> _Replay:
        """By higher's SGD, to which every update's settings are overrides."""
        groups = [{"params": [self._weights[name] for name in names]} for names in self._groups]
        start = SGD(groups, lr=0.0)
        start.state.update({self._weights[name]: state for name, state in self._states.items() if state})
        clip = None if max_norm is None else lambda gradients: clipped(gradients, max_norm)
        stepper = DifferentiableSGD(start, self._weights.values(), grad_callback=clip)

        def replay(loss: Tensor, weights: Weights, settings: Groups) -> Weights:
            changed = {name: [group[name] for group in settings] for name in settings[0] if name in start.defaults}
            after = stepper.step(loss, params=weights.values(), override=changed)
            return dict(zip(weights, after, strict=True))

        return replay

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `from_state` goes on, within a window too."""
        updates = [
            {"seed": update.seed, "total": update.total, "settings": [_plain(group) for group in update.settings()]}
            for update in self._updates
        ]
        return {"weights": dict(self._weights), "states": dict(self._states), "updates": updates}

    @classmethod
    def from_state(
        cls,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        state: Mapping[str, Any],
        samples: Sequence[Callable[[], Samples]],
        settings: Sequence[Callable[[], Groups]] | None = None,
    ) -> Self:
        """The window of a `state_dict`. `samples`, one for each of its updates, cannot be stored: make them again.

        So for `settings` on the graph of learned rates; without them the stored values are constants. ValueError: not
        as many of them as updates, or other weights than the optimizer trains.
        """
        window, updates = cls(optimizer, named_parameters), state["updates"]
        settings = [_constant(update["settings"]) for update in updates] if settings is None else settings
        if not len(samples) == len(settings) == len(updates):
            found = f"{len(samples)} samples and {len(settings)} settings"
            raise ValueError(f"a window of {len(updates)} updates needs as many samples and settings, found {found}")
        if state["weights"].keys() != window._weights.keys():
            raise ValueError("the stored window is of other weights than this optimizer trains; start a new one")
        window._weights = {name: state["weights"][name].to(weight) for name, weight in window._weights.items()}
        window._states = {name: _beside(window._weights[name], kept) for name, kept in state["states"].items()}
        for update, sample, group in zip(updates, samples, settings, strict=True):
            window.add(sample, seed=update["seed"], total=update["total"], settings=group)
        return window


def present_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of every parameter group as they are now, for `Window.add`."""
    return [group_settings(group) for group in bare_optimizer(optimizer).param_groups]


def unroll(
    network: nn.Module,
    optimizer: Optimizer,
    steps: Sequence[Samples | Callable[[], Samples]],
    losses: Losses,
    validation: Callable[[Forward], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    total: int,
    max_norm: float | None = None,
    hyperparameters: Mapping[str, Sequence[Tensor]] | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Gradient of `validation` after updates that are not taken, from the present weights, by the names of parameters.

    A step trains on its samples with sum_i losses_i / total, clipped to `max_norm`. `hyperparameters`: tensors for the
    optimizer's settings by name, one or one per group; `parameters` may hold them. `seeds` of dropout: each step's and
    the validation's; default 0, 1, ... Forward passes begin with the network's own buffers. A `Window` has more: real
    updates, settings that change from one to the next, autocast. ValueError: no steps, an optimizer without definition.
    """
    seeds = range(len(steps) + 1) if seeds is None else seeds
    if len(seeds) != len(steps) + 1:
        raise ValueError(f"{len(steps)} steps and the validation need {len(steps) + 1} seeds, found {len(seeds)}")
    window, settings = Window(optimizer, network.named_parameters()), present_settings(optimizer)
    for name, values in (hyperparameters or {}).items():
        for number, group in enumerate(settings):
            group[name] = values[0] if len(values) == 1 else values[number]
    for step, seed in zip(steps, seeds, strict=False):
        window.add(_constant(step) if isinstance(step, Samples) else step, seed=seed, total=total, settings=settings)

    def validated(weights: Weights) -> Tensor:
        return validation(lambda images: eager_logits(network, weights, images, seeds[-1], nullcontext, twice=True))

    return window.gradients_of(validated, network, losses, parameters, max_norm=max_norm)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _beside(weight: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a weight on its device; counts of updates stay where they are."""
    return {name: value if name == "step" else value.to(weight.device) for name, value in state.items()}


def _plain(settings: Settings) -> dict[str, Any]:
    """Without tensors."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.item()
        return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else value

    return {name: plain(value) for name, value in settings.items()}


def _leaves(steps: Sequence[Samples]) -> list[Samples]:
    """The same values at the root of a new graph: the policy's own is then gone through once, whatever K."""
    learned = any(samples.images.requires_grad for samples in steps)
    leaves = []
    for samples in steps:
        target = detached(samples.target)
        for field in (target.mass, target.weight, target.rows):
            if field is not None:
                field.requires_grad_()
        leaves.append(Samples(samples.images.detach().requires_grad_(learned), target))
    return leaves


def _differentiated(
    value: Tensor, steps: Sequence[Samples], leaves: Sequence[Samples], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """d value / d parameters: through the samples of the steps, and where value has them directly."""
    inputs = [field for leaf in leaves for field in _differentiable(leaf)]
    every = [*inputs, *parameters.values()]
    gradients = torch.autograd.grad(value, every, allow_unused=True, materialize_grads=True)
    slopes = {id(field): slope for field, slope in zip(inputs, gradients, strict=False)}
    acted = pull_back(_joined(steps), _cotangent(leaves, slopes), parameters)
    return {name: acted[name] + direct for name, direct in zip(parameters, gradients[len(inputs) :], strict=True)}


def _differentiable(leaf: Samples) -> list[Tensor]:
    """What is differentiated: images where any step's are learned, masses, weights and rows."""
    fields = (leaf.images, leaf.target.mass, leaf.target.weight, leaf.target.rows)
    return [field for field in fields if field is not None and field.requires_grad]


def _joined(steps: Sequence[Samples]) -> Samples:
    """The samples of all steps as one batch; images only where they are learned."""
    rows, scores = [s.target.rows for s in steps], [s.log_probability for s in steps]
    for name, parts in (("rows", rows), ("log_probability", scores)):
        if len({part is None for part in parts}) > 1:
            raise ValueError(f"some steps have {name} and others do not; give it for all or for none")
    images = [s.images for s in steps]
    targets = zip(*(s.target for s in steps), strict=True)
    return Samples(
        torch.cat(images) if any(i.requires_grad for i in images) else images[0],
        SoftTarget(*map(_all, targets)),  # type: ignore[arg-type]
        _all(scores),
    )


def _cotangent(leaves: Sequence[Samples], slopes: dict[int, Tensor]) -> Cotangent:
    """The cotangent of `_joined`."""
    targets = [leaf.target for leaf in leaves]
    parts = ([leaf.images for leaf in leaves], *([getattr(t, n) for t in targets] for n in ("mass", "weight", "rows")))
    return Cotangent(*(_all([slopes.get(id(part)) for part in of]) for of in parts))  # type: ignore[arg-type]


def _all(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(cast(list[Tensor], list(parts)))

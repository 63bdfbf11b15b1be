"""The validation gradient v: of the loss on the meta split in the network's weights, averaged over renewals."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from fastaug.augment.learned_effects import Augmentation
from fastaug.batch import Batch
from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import Ids, Request, piece_bounds
from fastaug.errors import DataError, RecipeError
from fastaug.hypergrad.problem import Weights, eager_logits
from fastaug.hypergrad.recording import Recording, RecordingError, Tensors
from fastaug.recipe.schema import SMALLEST_BATCH
from fastaug.seeding import Key, Stream, permuted, scalar_seed

IMAGES, LABELS = "the meta images", "their labels"  # among weights, whose names have no blanks


@contextmanager
def told_of_recording() -> Iterator[None]:
    """RecipeError for a computation that cannot be recorded."""
    try:
        yield
    except RecordingError as error:
        raise RecipeError([f"meta.cuda_graphs: {error}; set it to false"]) from error


def meta_requests(
    ids: Ids, *, seed: int, batch_size: int, world: int = 1, rank: int = 0, first: int = 0
) -> Iterator[Request]:
    """This process's share of the meta batches numbered `first`, `first` + 1, ... without end.

    The split is gone through in one keyed permutation after the other, so that every image comes once a cycle, in
    batches of `batch_size` over all processes whatever the split's size.
    """
    bounds = piece_bounds(batch_size, world)
    cycle, order = -1, ids
    for number in _count_from(first):
        positions = np.arange(number * batch_size + bounds[rank], number * batch_size + bounds[rank + 1])
        pieces = []
        for turn in np.unique(positions // len(ids)).tolist():
            if turn != cycle:
                cycle, order = turn, permuted(Key(seed, turn, Stream.META), ids)
            pieces.append(order[positions[positions // len(ids) == turn] % len(ids)])
        yield Request(cycle, np.concatenate(pieces))


def validated_names(network: nn.Module, layers: Sequence[str]) -> list[str] | None:
    """Names of the trained weights in `layers`, in the network's order; None for all; RecipeError if a layer has none.

    "auto" in place of a list: the last stage and the classifier, which are the last two groups of layers in timm's
    coarse order; all of a network of which timm has none. The order of names matters: processes sum gradients
    one after the other, in the same order.
    """
    order = _coarse_order(network) if layers == "auto" else None
    if not layers or (layers == "auto" and order is None):
        return None
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    if order is not None:
        *_, stage, classifier = group_parameters(network, order).values()
        return [name for name in trained if name in {*stage, *classifier}]
    inside = {layer: [name for name in trained if f"{name}.".startswith(f"{layer}.")] for layer in layers}
    if empty := [layer for layer, names in inside.items() if not names]:
        modules = ", ".join(dict.fromkeys(name.split(".")[0] for name in trained))
        raise RecipeError([f"meta.layers: {empty[0]} has no trained weights; the network's modules: {modules}"])
    return [name for name in trained if any(name in names for names in inside.values())]


def _coarse_order(network: nn.Module) -> Any:
    """timm's coarse order of the layers, in the form that group_parameters takes; None where it has none."""
    order: Any = getattr(network, "group_matcher", None)
    try:
        return None if order is None else order(coarse=True)
    except AssertionError:  # RDNet's, which has the fine one only
        return None


def _count_from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


class ValidationGradient:
    """The validation gradient v of the latest meta batches.

    `loss(logits, labels)` is the sum over a batch. `decay` is the factor on earlier gradients at each renewal (0: only
    the last counts); the average is corrected for its start as Adam's moments are. A gradient that is not finite does
    not enter it: v stays what it was, and is not finite before the first that is. So does a meta batch without an image
    that can be decoded; DataError after `cycle` of those in a row, the batches of the whole split. `total(tensor)` sums
    over processes.
    """

    recording: Recording | None = None  # replays the gradient of full meta batches on a GPU

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        augment: Augmentation,
        requests: Callable[[int], Iterator[Request]],
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        decay: float,
        seed: int,
        total: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager[object]],
        cycle: int,
    ) -> None:
        self._network, self._loader, self._augment, self._requests = network, loader, augment, requests
        self._loss = loss
        self._decay, self._seed, self._total, self._autocast = decay, seed, total, autocast
        self._batches: Iterator[Batch] | None = None
        self._average: Weights = {}
        self.renewals = self.left_out = 0  # meta batches so far; those whose gradient was not finite
        self._cycle, self._empty = cycle, torch.tensor(0)  # latest meta batches in a row without an image

    def renew(self, weights: Weights, names: Sequence[str] | None = None) -> None:
        """Goes to the next meta batch; `weights` are those of the network that is validated.

        v is in those of `names` only, the same in every call (default: in all).
        """
        if self._batches is None:
            self._batches = self._loader.batches(self._requests(self.renewals))
        fresh = self._gradient(weights, list(weights) if names is None else names, next(self._batches))
        self.renewals += 1
        finite = bool(torch.stack([g.isfinite().all() for g in fresh.values()]).all())  # host sync
        self.left_out += not finite
        if not finite:
            self._check_images()
        if finite and self._averaged() > 1:
            self._average = {name: self._average[name] for name in fresh}  # earlier versions kept those of all weights
            torch._foreach_lerp_(list(self._average.values()), list(fresh.values()), 1 - self._decay)
        elif finite or not self._average:
            self._average = dict(zip(fresh, torch._foreach_mul(list(fresh.values()), 1 - self._decay), strict=True))

    def _averaged(self) -> int:
        return self.renewals - self.left_out

    def value(self) -> Weights:
        """v by the names of the weights."""
        correction = 1 - self._decay ** self._averaged()
        if correction == 1:
            return self._average
        return dict(zip(self._average, torch._foreach_div(list(self._average.values()), correction), strict=True))

    def _gradient(self, weights: Weights, names: Sequence[str], batch: Batch) -> Weights:
        """Of the mean loss over the meta batch of all processes; not finite if none of them has an image to use."""
        used = len(batch.ids) if len(batch.ids) >= SMALLEST_BATCH else 0  # BatchNorm cannot take fewer
        gradients = self._summed(weights, names, batch) if used else [torch.zeros_like(weights[name]) for name in names]
        count = self._total(torch.tensor(float(used), device=batch.images.device))
        self._empty = torch.where(count > 0, 0, self._empty.to(count.device) + 1)
        return {name: self._total(value) / count for name, value in zip(names, gradients, strict=True)}

    def _summed(self, weights: Weights, names: Sequence[str], batch: Batch) -> Sequence[Tensor]:
        """Of the loss summed over this process's meta images, in training mode as the network's own."""
        images = self._augment.evaluation(batch)
        seed = scalar_seed(Key(self._seed, self.renewals, Stream.META), 0)

        def compute(tensors: Tensors) -> Sequence[Tensor]:
            leaves = {name: tensors[name].detach().requires_grad_(name in names) for name in weights}
            with torch.enable_grad():
                logits = eager_logits(self._network, leaves, tensors[IMAGES], seed, self._autocast, twice=False)
                loss = self._loss(logits, tensors[LABELS])
                return torch.autograd.grad(loss, [leaves[name] for name in names])

        inputs = {IMAGES: images, LABELS: batch.labels, **weights}
        if self.recording is None:
            return compute(inputs)
        with told_of_recording():
            found = self.recording(compute, inputs, seed=seed, also=tuple(names))
        return [gradient for gradient in found if gradient is not None]

    def _check_images(self) -> None:
        """DataError, on all processes, when the whole meta split has gone by without an image."""
        if self._empty >= self._cycle:
            reason = next((f" ({reason})" for reason in self.skipped.values()), "")
            raise DataError(
                f"meta split: no image of its {self._cycle} batches could be decoded{reason}; repair its images or "
                "change data.root"
            )

    def state_dict(self) -> dict[str, Any]:
        """Average and number of renewals."""
        return {"average": self._average, "renewals": self.renewals, "left_out": self.left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`, with the meta batch that would have come next."""
        device = next(self._network.parameters()).device
        self._average = {name: value.to(device, copy=True) for name, value in state["average"].items()}
        self.renewals, self.left_out, self._batches = state["renewals"], state["left_out"], None

    @property
    def skipped(self) -> dict[int, str]:
        """Damaged meta images so far, by id, with the reason."""
        return self._loader.skipped

"""Linear probe: multinomial logistic regression on the features of a network that is not trained."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fastaug.atomic_files import write_atomically
from fastaug.augment.pipeline import BatchAugment
from fastaug.data.build import DataParts
from fastaug.data.index import cache_dir
from fastaug.data.loaders.base import Crop, Loader
from fastaug.data.sampler import Ids
from fastaug.errors import DataError
from fastaug.evaluation.evaluate import evaluation_requests

STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # values of C to choose from
ITERATIONS = 500  # of L-BFGS, at most


class Features(NamedTuple):
    """Features [N, D] float32 of the images `ids` [N] that can be decoded, with their labels [N]; on the host."""

    features: Tensor
    labels: Tensor
    ids: Tensor


@torch.no_grad()
def extract(network: nn.Module, loader: Loader, augment: BatchAugment, ids: Ids, batch_size: int) -> Features:
    """What `network`, a timm model in evaluation mode, gives its classifier for every image of `ids`."""
    network.eval()
    found: list[Features] = []
    for batch in loader.batches(evaluation_requests(ids, batch_size, 1, 0)):
        if len(batch.ids):
            maps = network.forward_features(augment.evaluation(batch))  # type: ignore[operator]
            features: Tensor = network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
            found.append(Features(features.float().cpu(), batch.labels.cpu(), batch.ids))
    if not found:
        raise DataError("data.root: no image of a split of the linear probe can be decoded; repair its images")
    return Features(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def fingerprint(network: nn.Module, parts: DataParts, ids: Ids, crop: Crop, pixels: Sequence[Any]) -> str | None:
    """SHA-256 of all that features follow from: weights, images, crop, and `pixels`, how these become numbers.

    None where it is not known whether the images are the same, as of shards: features are not kept then.
    """
    if parts.index is None or parts.index.stamps is None:
        return None
    digest = hashlib.sha256(repr((type(network).__name__, crop, [str(value) for value in pixels])).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for column in (ids, parts.index.labels[ids], parts.index.stamps[ids]):
        digest.update(column.tobytes())
    for sample in ids.tolist():
        digest.update(parts.index.path(sample) + b"\0")
    return digest.hexdigest()


def cached_path(key: str) -> Path:
    """Where features of that fingerprint are kept."""
    return cache_dir() / "features" / f"{key[:32]}.safetensors"


def load(key: str) -> Features | None:
    """The features kept under a fingerprint; None without, and where their file is broken, which is told."""
    path = cached_path(key)
    if not path.exists():
        return None
    try:
        return Features(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        warnings.warn(f"{path}: cannot be read ({error}); features are computed again", stacklevel=2)
        return None


def keep(key: str, found: Features) -> None:
    """Keeps features under their fingerprint; a warning where the cache cannot be written."""
    path = cached_path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(found._asdict()))
    except OSError as error:
        warnings.warn(f"{path}: cannot be written ({error}); features will be computed again", stacklevel=2)


class Probe(NamedTuple):
    """A linear classifier of standardised features: logits = (x - mean) / std @ weight.T + bias."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, C] float64 of features [N, D]."""
        return F.linear((features.double() - self.mean) / self.std, self.weight, self.bias)


def fit(known: Features, classes: int, strength: float, start: Probe | None = None) -> Probe:
    """Multinomial logistic regression by L-BFGS in float64.

    Minimises C sum_i loss_i + |W|^2 / 2 (scikit-learn's C, `strength`; the bias is free) on features standardised by
    their own mean and deviation. `start`: where to begin, for a neighbouring C.
    """
    features = known.features.double()
    std, mean = torch.std_mean(features, dim=0, correction=0)
    std = torch.where(std > 0, std, 1)
    inputs, size = (features - mean) / std, len(features)
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64) if start is None else start.weight.clone()
    bias = torch.zeros(classes, dtype=torch.float64) if start is None else start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-7
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(F.linear(inputs, weight, bias), known.labels)
        loss = loss + weight.square().sum() / (2 * strength * size)
        loss.backward()
        return loss

    solver.step(closure)
    return Probe(weight.detach(), bias.detach(), mean, std)


def choose(known: Features, judged: Features, classes: int) -> tuple[float, Probe, dict[float, float]]:
    """The C of STRENGTHS whose classifier has the lowest log loss on `judged`; it, and the top-1 of each there."""
    best: tuple[float, float, Probe] | None = None
    right, probe = {}, None
    for strength in STRENGTHS:
        probe = fit(known, classes, strength, probe)
        logits = probe.logits(judged.features)
        loss = float(F.cross_entropy(logits, judged.labels))
        right[strength] = float((logits.argmax(1) == judged.labels).double().mean())
        if best is None or loss < best[0]:
            best = (loss, strength, probe)
    assert best is not None
    return best[1], best[2], right

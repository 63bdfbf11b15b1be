"""Tiny float64 networks with the layers that meta steps trip over, and a training problem for each."""

from collections.abc import Callable
from functools import partial

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fastaug.hypergrad.problem import Cotangent, Problem, Samples, Weights
from fastaug.targets import SoftTarget, soft_cross_entropy

CLASSES, SIDE, N = 5, 12, 8
LOSSES = partial(soft_cross_entropy, reduction="none")


class Attention(nn.Module):
    """One head over the four quarters of the image, by a fused kernel without second derivatives, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 6, stride=6)
        self.norm, self.qkv, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x))[:, None].chunk(3, -1)
        x = x + F.dropout(F.scaled_dot_product_attention(q, k, v)[:, 0], 0.2, self.training)
        out: Tensor = self.head(F.gelu(x).mean(1))
        return out


class Residual(nn.Module):
    """x + drop_path(branch(x))."""

    def __init__(self, branch: nn.Module, drop: float) -> None:
        super().__init__()
        self.branch, self.drop = branch, DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.branch(x))
        return out


def smooth(channels: int = 16) -> nn.Module:
    """BatchNorm without ReLU and max-pooling: a large step sees the slope that a derivative sees."""
    layers: list[nn.Module] = []
    for before, after in ((3, channels), (channels, 2 * channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.Tanh(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, CLASSES))


def _convolutional(norm: Callable[[int], nn.Module], *extra: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        norm(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *extra,
        nn.Conv2d(6, 8, 3, stride=2),
        norm(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


def _bare(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, affine=False)


NETS: dict[str, Callable[[], nn.Module]] = {
    "batch_norm": partial(_convolutional, nn.BatchNorm2d),
    "batch_norm_bare": partial(_convolutional, _bare),
    "group_norm": partial(_convolutional, partial(nn.GroupNorm, 2)),
    "layer_norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE**2, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES)
    ),
    "dropout": partial(_convolutional, nn.BatchNorm2d, nn.Dropout(0.4)),
    "drop_path": partial(_convolutional, nn.BatchNorm2d, Residual(nn.Conv2d(6, 6, 3, padding=1), 0.5)),
    "attention": Attention,
    "smooth": smooth,
    "timm": partial(timm.create_model, "test_resnet", num_classes=CLASSES),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network in training mode with weights, norms' scales among them, that are nowhere special."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETS[name]().double().train()
        for weight in network.parameters():
            if weight.ndim == 1:
                weight.data += 0.2 * torch.randn_like(weight)
    return network


def images(count: int, seed: int = 1) -> Tensor:
    """Smooth random pictures [count, 3, 12, 12] in float64, so that shifting them is a small change."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")


def target(count: int, seed: int = 2, rows: bool = False) -> SoftTarget:
    """Pairs of classes with masses, weights and optional soft rows, in float64."""
    g = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, 3, generator=g, dtype=torch.float64)
    mass = (shares / shares.sum(1, keepdim=True))[:, :2]
    weight = 0.2 + torch.rand(count, generator=g, dtype=torch.float64)
    soft = torch.randn(count, 2, CLASSES, generator=g, dtype=torch.float64).softmax(-1) if rows else None
    return SoftTarget(torch.randint(0, CLASSES, (count, 2), generator=g), mass, weight, soft)


def weights_of(network: nn.Module) -> Weights:
    """The trained weights, by name, as they are."""
    return {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad}


def problem(network: nn.Module, samples: Samples, seed: int = 7) -> Problem:
    """The cross-entropy problem of these samples at the network's weights."""
    return Problem(network, weights_of(network), samples, LOSSES, len(samples.images), seed)


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative distance."""
    return float((found - expected).norm() / expected.norm())


def validation_loss(network: nn.Module, weights: Weights | None = None) -> Tensor:
    """On other images, in training mode with a seed of its own."""
    torch.manual_seed(11)
    pictures = images(N, 21)
    logits = network(pictures) if weights is None else functional_call(network, weights, (pictures,))
    loss: Tensor = LOSSES(logits, target(N, 22)).mean()
    return loss


def some_problem(name: str = "batch_norm", rows: bool = False, seed: int = 0) -> tuple[Problem, Weights]:
    """A problem without meta-parameters, and a direction."""
    made = problem(build(name, seed), Samples(images(N), target(N, rows=rows)))
    g = torch.Generator().manual_seed(seed)
    return made, {n: torch.randn(w.shape, generator=g, dtype=w.dtype) for n, w in made.weights.items()}


def parts(cotangent: Cotangent) -> dict[str, Tensor]:
    """Those that there are."""
    return {name: part for name, part in cotangent._asdict().items() if part is not None}


def assert_agree(found: Cotangent, expected: Cotangent, limit: float = 1e-10) -> None:
    """Part by part."""
    assert parts(found).keys() == parts(expected).keys()
    for name, part in parts(found).items():
        assert relative(part, getattr(expected, name)) <= limit, name

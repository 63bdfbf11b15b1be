"""What one-step methods are compared on: the same network, state, batches and meta-parameters for all of them.

It needs torch and timm alone, because other libraries may have interpreters of their own.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

PARTS = ("weights", "all")  # all: weights and magnitudes
Step = Callable[[], Tensor]  # takes an optimizer step; gives the hypergradient [parameters of the task], flat


@dataclass(frozen=True)
class Setting:
    """How large everything is."""

    model: str = "resnet18"
    side: int = 64
    batch: int = 64
    classes: int = 100
    lr: float = 0.02
    momentum: float = 0.9

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Setting":
        return Setting(**json.loads(text))


@dataclass(frozen=True)
class Task:
    """One batch and one validation batch of images [N, 3, S, S] and labels [N], and the meta-parameters, each [N].

    `weights` are those of the samples' losses; an image is multiplied by 1 + its `magnitude` (brightness), which is
    differentiated if its requires_grad says so.
    """

    setting: Setting
    images: Tensor
    labels: Tensor
    meta_images: Tensor
    meta_labels: Tensor
    weights: nn.Parameter
    magnitudes: nn.Parameter

    def parameters(self) -> list[nn.Parameter]:
        """What the hypergradient is of, in its order."""
        return [p for p in (self.weights, self.magnitudes) if p.requires_grad]

    def augmented(self) -> Tensor:
        """The images of the batch, on the graph of their magnitudes."""
        return self.images * (1 + self.magnitudes)[:, None, None, None]

    def loss(self, logits: Tensor) -> Tensor:
        """The training loss of logits [N, C]: mean of weight times cross-entropy."""
        return (self.weights * F.cross_entropy(logits, self.labels, reduction="none")).mean()

    def validation(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy on the validation batch."""
        return F.cross_entropy(logits, self.meta_labels)

    def network(self) -> nn.Module:
        """The network as it is initialised, in training mode and the type of the images."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network: nn.Module = timm.create_model(self.setting.model, num_classes=self.setting.classes)
        return network.train().to(self.images.dtype)

    def start(self) -> tuple[nn.Module, SGD]:
        """The network and its optimizer after one step, so that there is momentum; in the type of the images."""
        single = self.cast(torch.float32)
        network = single.network()
        optimizer = SGD(network.parameters(), lr=self.setting.lr, momentum=self.setting.momentum)
        train(network, optimizer, single)
        network.to(self.images.dtype)
        for state in optimizer.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].to(self.images.dtype)
        return network, optimizer

    def cast(self, dtype: torch.dtype) -> "Task":
        """The same numbers in another type."""
        weights, magnitudes = (
            nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad) for p in (self.weights, self.magnitudes)
        )
        images, meta_images = self.images.to(dtype), self.meta_images.to(dtype)
        return replace(self, images=images, meta_images=meta_images, weights=weights, magnitudes=magnitudes)


def new_task(setting: Setting, part: str) -> Task:
    """The task of one of PARTS; the same numbers at every call."""
    draw = torch.Generator().manual_seed(0)
    shape = (setting.batch, 3, setting.side, setting.side)
    images, meta_images = (torch.randn(shape, generator=draw) for _ in range(2))
    labels, meta_labels = (torch.randint(setting.classes, (setting.batch,), generator=draw) for _ in range(2))
    weights = nn.Parameter(0.5 + torch.rand(setting.batch, generator=draw))
    magnitudes = nn.Parameter(0.4 * torch.rand(setting.batch, generator=draw) - 0.2, requires_grad=part == "all")
    return Task(setting, images, labels, meta_images, meta_labels, weights, magnitudes)


def train(network: nn.Module, optimizer: SGD, task: Task) -> None:
    """One plain training step."""
    with torch.no_grad():
        images = task.augmented()
    task.loss(network(images)).backward(inputs=list(network.parameters()))
    optimizer.step()
    optimizer.zero_grad()


def plain(task: Task) -> Step:
    """Steps without a hypergradient."""
    network, optimizer = task.start()

    def step() -> Tensor:
        train(network, optimizer, task)
        return torch.empty(0)

    return step


def flat(gradients: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """One tensor of them all."""
    return torch.cat([g.detach().flatten() for g in gradients])


def reference(task: Task, updates: int = 1) -> Tensor:
    """The hypergradient of the first updates in float64, by double backward through SGD with momentum written out."""
    task = task.cast(torch.float64)
    network, optimizer = task.start()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    weights: dict[str, Tensor] = dict(network.named_parameters())
    moments = {name: optimizer.state[weight]["momentum_buffer"] for name, weight in network.named_parameters()}
    for _ in range(updates):
        gradients = torch.autograd.grad(
            task.loss(functional_call(network, {**weights, **buffers}, (task.augmented(),))),
            list(weights.values()),
            create_graph=True,
        )
        for (name, weight), gradient in zip(list(weights.items()), gradients, strict=True):
            moments[name] = task.setting.momentum * moments[name] + gradient
            weights[name] = weight - task.setting.lr * moments[name]
    validation = task.validation(functional_call(network, {**weights, **buffers}, (task.meta_images,)))
    return flat(torch.autograd.grad(validation, task.parameters()))


def agreement(found: Tensor, truth: Tensor, task: Task) -> dict[str, dict[str, float]]:
    """Cosine and relative error |found - truth| / |truth| of every group of meta-parameters."""
    counts = [p.numel() for p in task.parameters()]
    figures = {}
    for name, a, b in zip(("weights", "magnitudes"), found.double().split(counts), truth.split(counts), strict=False):
        cosine = F.cosine_similarity(a, b, dim=0).item()
        figures[name] = {"cosine": cosine, "relative_error": ((a - b).norm() / b.norm()).item()}
    return figures

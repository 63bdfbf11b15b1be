"""What the meta step can learn, each as a bounded function of unbounded numbers.

policy             probabilities and magnitudes of a shared policy of differentiable operations
softness           exponent k of the softening curve
smoothing          label smoothing
weights            a loss weight for every training image, kept in a table by id
instant_weights    loss weights set anew in every update from this update's own pass, nothing kept
instant_labels     soft labels likewise
optim              learning rate, momentum and weight decay of the network's optimizer
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastaug.recipe.schema import EXPONENTS, LARGEST_MOMENTUM, LARGEST_SMOOTHING, Recipe

if TYPE_CHECKING:
    from fastaug.augment.shared_policy import SharedPolicy

WEIGHTS = (0.0, 2.0)  # of a training image
FACTORS = (0.1, 10.0)  # on learning rate and weight decay
INSTANT = {"instant_weights", "instant_labels"}


class Bounded(nn.Module):
    """One number in (low, high), a logistic function of the parameter `raw`; on a logarithmic scale if `log`."""

    def __init__(self, initial: float, low: float, high: float, *, log: bool = False) -> None:
        super().__init__()
        self.log = log
        self.low, self.high = (math.log(low), math.log(high)) if log else (low, high)
        share = ((math.log(initial) if log else initial) - self.low) / (self.high - self.low)
        if not 0 < share < 1:
            raise ValueError(f"the initial value {initial} must be inside of ({low}, {high})")
        self.raw = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Tensor:
        """The number, on the graph of `raw`."""
        inside = self.low + (self.high - self.low) * torch.sigmoid(self.raw)
        return inside.exp() if self.log else inside

    def saturation(self) -> Tensor:
        """How near the number is to one of its bounds: 0 in the middle, 1 at a bound."""
        return (2 * torch.sigmoid(self.raw) - 1).abs()


class SampleWeights(nn.Module):
    """A loss weight in WEIGHTS for each of `size` ids, 1 at the start.

    The weights are the numbers that move, cut off at the bounds, and 0 is one of them: behind a logistic function a
    sample near a bound hardly moves any more, and with a small weight a wrong label is learned all the same, later
    (docs/meta.md).
    """

    weight: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(size))

    def rows(self, ids: Tensor) -> Tensor:
        """The weights of `ids` (on the host), a leaf of their own: gradients stop here."""
        return self(ids).requires_grad_()

    def forward(self, ids: Tensor) -> Tensor:
        """Weights [n] of `ids` [n] (on the host)."""
        return self.weight[ids.to(self.weight.device)]

    def move(self, ids: Tensor, gradient: Tensor, rate: float) -> None:
        """One step against the hypergradient [n] of the weights of `ids` [n], ids of all processes, each at most once.

        Where smaller weights for the whole batch would help (a lower learning rate in disguise), their mean, weighted
        by the weights, is taken out of the gradient: weights cannot all shrink. Then it is divided by its root mean
        square and clipped at 3, so that the step knows no scale. Samples whose gradient is not finite stay.
        """
        ids = ids.to(self.weight.device)
        weights, finite = self.weight[ids], gradient.isfinite()
        gradient = torch.where(finite, gradient, 0)
        shrinking = (weights * gradient).sum() / (weights * finite).sum().clamp_min(torch.finfo(weights.dtype).tiny)
        gradient = torch.where(finite, gradient - shrinking.clamp_min(0), 0)
        scale = (gradient.square().sum() / finite.sum().clamp_min(1)).sqrt()
        step = rate * (gradient / torch.where(scale > 0, scale, 1)).clamp(-3, 3)
        self.weight[ids] = (weights - step).clamp(*WEIGHTS)


class InnerRates(nn.Module):
    """Factors on the scheduled learning rate and on weight decay, and momentum where the optimizer has that key."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.lr = Bounded(1.0, *FACTORS, log=True)
        self.weight_decay = Bounded(1.0, *FACTORS, log=True)
        self.momentum = None if not momentum else Bounded(momentum, 0.0, LARGEST_MOMENTUM)

    def parts(self) -> dict[str, Bounded]:
        """Each part by the name of the optimizer's key."""
        found = {"lr": self.lr, "weight_decay": self.weight_decay}
        return found if self.momentum is None else found | {"momentum": self.momentum}

    def values(self) -> dict[str, Tensor]:
        """Each number by the name of the optimizer's key, on the graph."""
        return {name: part() for name, part in self.parts().items()}

    def set(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the numbers in `optimizer`, whose "lr" was just set by the schedule; host sync on a GPU."""
        values = {name: value.item() for name, value in self.values().items()}
        for group in optimizer.param_groups:
            group.setdefault("given_weight_decay", group["weight_decay"])
            group["lr"] = group["lr"] * values["lr"]
            group["weight_decay"] = group["given_weight_decay"] * values["weight_decay"]
            if "momentum" in values:
                group["momentum"] = values["momentum"]

    def gradients(self, optimizer: torch.optim.Optimizer, slopes: list[dict[str, Tensor]]) -> list[Tensor]:
        """d/d parameters, in their order, from d/dh of each of the optimizer's groups as they were in the step."""
        values = self.values()
        total = {name: torch.zeros_like(value) for name, value in values.items()}
        for group, slope in zip(optimizer.param_groups, slopes, strict=True):
            scale = {
                "lr": group["lr"] / values["lr"].detach(),
                "weight_decay": group.get("given_weight_decay", 0.0),
                "momentum": 1.0,
            }
            for name in total.keys() & slope.keys():
                total[name] += slope[name].to(total[name].device) * scale[name]
        found = torch.autograd.grad(list(values.values()), list(self.parameters()), list(total.values()))
        return list(found)


class MetaParameters(nn.Module):
    """All that one run learns by its meta step; parts that `meta.learn` does not name are None.

    The shared parts are a few numbers and live on the host, where draws are made; the table is on the device.
    """

    def __init__(self, recipe: Recipe, images: int, momentum: float | None, device: torch.device) -> None:
        super().__init__()
        augment, learn = recipe.augment, set(recipe.meta.learn)
        self.policy = _policy(recipe) if "policy" in learn else None
        self.softness = Bounded(augment.soften_k, *EXPONENTS, log=True) if "softness" in learn else None
        self.smoothing = Bounded(augment.smoothing, 0.0, LARGEST_SMOOTHING) if "smoothing" in learn else None
        self.weights = SampleWeights(images).to(device) if "weights" in learn else None
        self.optim = InnerRates(momentum) if "optim" in learn else None

    def optimizer_numbers(self) -> int:
        """How many of the shared parameters, the last ones, belong to the part `optim`."""
        return 0 if self.optim is None else len(list(self.optim.parameters()))

    def groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Parameter groups of the meta-optimizer: every shared part with a rate of its own."""
        rates = {
            "policy": recipe.meta.policy_lr,
            "softness": recipe.meta.softness_lr,
            "smoothing": recipe.meta.smoothing_lr,
            "optim": recipe.meta.optim_lr,
        }
        parts = {name: getattr(self, name) for name in rates}
        return [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": rates[name], "name": name}
            for name, part in parts.items()
            if part is not None
        ]

    @torch.no_grad()
    def summary(self) -> dict[str, float]:
        """What the log says of the learned values; host sync."""
        found = {} if self.policy is None else {f"policy_{k}": v for k, v in self.policy.summary().items()}
        if self.softness is not None:
            found |= {"soften_k": self.softness().item(), "soften_saturation": self.softness.saturation().item()}
        if self.smoothing is not None:
            found |= {"smoothing": self.smoothing().item(), "smoothing_saturation": self.smoothing.saturation().item()}
        if self.weights is not None:
            weight = self.weights.weight
            found |= {"weight_mean": weight.mean().item(), "weight_zero": (weight == 0).float().mean().item()}
        if self.optim is not None:
            for name, part in self.optim.parts().items():
                found |= {f"optim_{name}": part().item(), f"optim_{name}_saturation": part.saturation().item()}
        return found


def _policy(recipe: Recipe) -> "SharedPolicy":
    from fastaug.augment.shared_policy import SharedPolicy  # kornia is slow to import

    policy = SharedPolicy(slots=recipe.meta.slots, fill=tuple(recipe.data.mean))
    policy.strengths.requires_grad_(recipe.meta.magnitudes)
    return policy

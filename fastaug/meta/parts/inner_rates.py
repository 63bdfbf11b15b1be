"""Learned settings of the network's own optimizer: learning rate, weight decay, momentum."""

from typing import Any

import torch
from torch import Tensor

from fastaug.meta.bounded import Bounded
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.recipe.schema import LARGEST_MOMENTUM

FACTORS = (0.1, 10.0)  # on learning rate and weight decay


class InnerRates(LearnedPart):
    """Factors on the scheduled learning rate and on weight decay, and momentum where the optimizer has that key."""

    on_batch = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.recipe.meta.optim_lr)
        momentum = setting.optimizer.param_groups[0].get("momentum")
        rates = {
            "lr": Bounded(1.0, *FACTORS, log=True),
            "weight_decay": Bounded(1.0, *FACTORS, log=True),
            **({"momentum": Bounded(momentum, 0.0, LARGEST_MOMENTUM)} if momentum else {}),
        }
        self.rates = torch.nn.ModuleDict(rates)

    def each(self) -> dict[str, Bounded]:
        """Each bounded number by the name of the optimizer's key."""
        return dict(self.rates.items())  # type: ignore[arg-type]

    def values(self) -> dict[str, Tensor]:
        """Each number by the name of the optimizer's key, on the graph."""
        return {name: rate() for name, rate in self.each().items()}

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the numbers in `optimizer`; host sync on a GPU."""
        values = {name: value.item() for name, value in self.values().items()}
        for group in optimizer.param_groups:
            group.setdefault("given_weight_decay", group["weight_decay"])
            group["lr"] = group["lr"] * values["lr"]
            group["weight_decay"] = group["given_weight_decay"] * values["weight_decay"]
            if "momentum" in values:
                group["momentum"] = values["momentum"]

    def rates_on_graph(self, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Settings of groups as `set_rates` made them, the learned ones as tensors on the graph."""
        values = self.values()
        found = []
        for group in settings:
            learned: dict[str, Any] = {"lr": group["lr"] * (values["lr"] / values["lr"].detach())}
            learned["weight_decay"] = group.get("given_weight_decay", 0.0) * values["weight_decay"]
            found.append(group | learned | ({"momentum": values["momentum"]} if "momentum" in values else {}))
        return found

    def settings(self) -> dict[str, Any]:
        """The bounds."""
        return {"factors": list(FACTORS), "momentum": [0.0, LARGEST_MOMENTUM]}

    def summary(self) -> dict[str, float]:
        """Each number, and how near it is to a bound."""
        found: dict[str, float] = {}
        for name, rate in self.each().items():
            found |= {f"optim_{name}": rate().item(), f"optim_{name}_saturation": rate.saturation().item()}
        return found

"""The direction that is known before a step against the exact one after it."""

import pytest
import torch
from timm.optim.lamb import Lamb
from timm.optim.rmsprop_tf import RMSpropTF
from torch.optim import SGD, Adam, AdamW, RMSprop

from fastaug.hypergrad.optimizer_jacobians.predicted import direction_ahead
from fastaug.hypergrad.optimizer_jacobians.recorded_step import record_step

OPTIMIZERS = {
    "sgd": lambda groups: SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": Adam,
    "amsgrad": lambda groups: AdamW(groups, amsgrad=True),
    "adamw": lambda groups: AdamW(groups, weight_decay=0.1),
    "rmsprop": RMSprop,
    "rmsprop centered": lambda groups: RMSprop(groups, centered=True),
    "rmsprop_tf": RMSpropTF,
    "lamb": lambda groups: Lamb(groups, trust_clip=True, always_adapt=False, weight_decay=0.0),
}


def scene(name):
    """Weights of two layers whose gradients, and v, differ a thousandfold, and the optimizer after 30 noisy steps."""
    generator = torch.Generator().manual_seed(0)
    weights = {"low.weight": torch.nn.Parameter(torch.zeros(400)), "high.weight": torch.nn.Parameter(torch.zeros(400))}
    scales = {"low.weight": 1.0, "high.weight": 1e3}
    groups = [{"params": [weights["low.weight"]], "lr": 1e-3}, {"params": [weights["high.weight"]], "lr": 2e-3}]
    optimizer = OPTIMIZERS[name](groups)

    def gradients():
        for key, weight in weights.items():
            weight.grad = scales[key] * (1 + 0.3 * torch.randn(400, generator=generator))

    for _ in range(30):
        gradients()
        optimizer.step()
    v = {key: 7 * scales[key] * torch.randn(400, generator=generator) for key in weights}
    return weights, v, optimizer, gradients


def cosine(one, other):
    return torch.cosine_similarity(*(torch.cat([u[key] for key in sorted(u)]) for u in (one, other)), dim=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_points_where_the_exact_direction_does(name):
    weights, v, optimizer, gradients = scene(name)
    ahead = direction_ahead(optimizer, weights.items(), v)
    gradients()
    recorded = record_step(optimizer, weights.items())
    optimizer.step()
    exact = recorded.direction(v)
    assert cosine(ahead, exact) > (1 - 1e-6 if name == "sgd" else 0.98)
    if name != "sgd":  # where it matters: plain gradient descent would point elsewhere
        assert cosine(direction_ahead(optimizer, weights.items(), v, approximate=True), exact) < 0.9


def test_before_the_first_step_it_is_gradient_descent_on_the_weights_of_v():
    weights = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = AdamW([{"params": [weights["a"]], "lr": 0.5}, {"params": [weights["b"]], "lr": 0.25}])
    found = direction_ahead(optimizer, weights.items(), {"b": torch.tensor([1.0, -2.0])})
    assert found.keys() == {"b"}
    torch.testing.assert_close(found["b"], torch.tensor([-0.25, 0.5]))


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "rmsprop", "rmsprop centered", "lamb"])
def test_weights_without_a_history_do_not_take_the_direction_over(name):
    """A layer behind a factor that starts at zero: its gradients are 0 so far, and the coming one is not."""
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.nn.Parameter(torch.ones(50)) for key in ("seen", "late")}
    optimizer = OPTIMIZERS[name](list(weights.values()))
    for _ in range(2):
        weights["seen"].grad, weights["late"].grad = torch.randn(50, generator=generator), torch.zeros(50)
        optimizer.step()
    v = {key: 1e-3 * torch.randn(50, generator=generator) for key in weights}
    u = direction_ahead(optimizer, weights.items(), v)
    assert u["late"].norm() < 20 * u["seen"].norm()  # 1e5 and more by the roots as they stand
    scaled = direction_ahead(optimizer, weights.items(), {key: 1e3 * value for key, value in v.items()})
    for key in weights:
        torch.testing.assert_close(scaled[key], 1e3 * u[key])

"""What a network costs, on one whose size is known."""

from contextlib import nullcontext

import torch
from torch import nn

from fastaug.evaluation.latency import measured_cost, parameters


def test_parameters_are_those_of_the_weights_frozen_ones_too():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    network[0].requires_grad_(False)
    assert parameters(network) == 3 * 4 * 9 + 2 * 4


def test_passes_are_counted_and_multiply_adds_are_those_of_the_layers():
    passes = []
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network.register_forward_hook(lambda module, inputs, _: passes.append((module.training, inputs[0].shape)))
    found = measured_cost(network, (3, 8, 10), torch.device("cpu"), 5, nullcontext)
    assert len(passes) == 10 + 5 + 1
    assert set(passes) == {(False, (1, 3, 8, 10))}
    assert found["multiply_adds"] == 6 * 8 * 4 * 27 + 4 * 2
    assert found["latency_runs"] == 5
    assert found["latency_ms"] > 0

"""What a network costs: parameters, multiply-adds of an image, and milliseconds of an image that comes alone."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 10  # passes that do not count: kernels are chosen, caches filled


def parameters(network: nn.Module) -> int:
    """Numbers in a network's weights, frozen ones too; buffers, as BatchNorm's statistics, do not count."""
    return sum(weight.numel() for weight in network.parameters())


@torch.no_grad()
def measured_cost(
    network: nn.Module,
    shape: tuple[int, int, int],
    device: torch.device,
    runs: int,
    autocast: Callable[[], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Latency of one image of `shape` (channels, height, width) already on the device: median and 90th percentile.

    Of `runs` passes one after the other, each waited for, in milliseconds, under `autocast()`. multiply_adds: half of
    the operations that torch's FlopCounterMode counts, those of convolutions and matrix products.
    """
    image = torch.zeros(1, *shape, device=device).contiguous(memory_format=torch.channels_last)
    network.eval()
    times = []
    with autocast():
        for _ in range(WARM_UP):
            network(image)
        for _ in range(runs):
            begin = _now(device)
            network(image)
            times.append(1000 * (_now(device) - begin))
    with FlopCounterMode(display=False) as counter:
        network(image)
    return {
        "latency_ms": statistics.median(times),
        "latency_ms_p90": sorted(times)[int(0.9 * (runs - 1))],
        "latency_runs": runs,
        "latency_threads": torch.get_num_threads(),
        "latency_device": device.type,
        "multiply_adds": counter.get_total_flops() // 2,
    }


def _now(device: torch.device) -> float:
    """Seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""A computation recorded as a CUDA graph: the results of computing it; on a CPU nothing is recorded."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastaug.hypergrad.engines.forward import forward
from fastaug.hypergrad.problem import Problem, Samples
from fastaug.hypergrad.recording import Recording, RecordingError, check_same, recorded_forward
from fastaug.targets import hard_target, soft_cross_entropy
from fastaug.training.build import Trainer
from fastaug.training.loop import train_step

CLASSES = 5
LOSSES = partial(soft_cross_entropy, reduction="none")


def problem(device: torch.device, *, dropout: float, images: bool) -> Problem:
    """Eight images, which want a gradient if `images`, on a network with BatchNorm and an activation in place."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(32, CLASSES)).to(device)
    weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    return Problem(network, weights, samples(device, 8, images=images), LOSSES, total=8)


def samples(device: torch.device, count: int, *, images: bool) -> Samples:
    """Random images of random classes."""
    drawn = torch.randn(count, 3, 12, 12, device=device, requires_grad=images)
    return Samples(drawn, hard_target(torch.randint(CLASSES, (count,), device=device)))


# CUDA's dropout has no forward mode of its backward pass, which images need; the self-test finds another engine then.
@pytest.mark.gpu
@pytest.mark.parametrize(("dropout", "images"), [(0.3, False), (0.0, True)], ids=["dropout", "images"])
def test_replayed_results_equal_computed_ones(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch, dropout: float, images: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    recording, one = Recording(), problem(cuda, dropout=dropout, images=images)
    buffers = {name: buffer.clone() for name, buffer in one.network.named_buffers()}
    for seed, count in ((1, 8), (2, 8), (3, 8), (4, 6), (5, 8)):  # the first and the shorter one are computed
        weights = {name: torch.randn_like(weight) for name, weight in one.weights.items()}
        other = replace(one, weights=weights, samples=samples(cuda, count, images=images), seed=seed)
        along = {name: torch.randn_like(weight) for name, weight in weights.items()}
        before = torch.cuda.get_rng_state(cuda)
        found = recorded_forward(recording, other, along)
        assert torch.equal(torch.cuda.get_rng_state(cuda), before)
        for got, want in zip(found, forward(other, along, images=images), strict=True):
            assert (got is None) == (want is None)
            assert (
                got is None or want is None or torch.allclose(got, want, rtol=1e-4, atol=1e-6 * float(want.abs().max()))
            )
    for name, buffer in one.network.named_buffers():
        assert torch.equal(buffer, buffers[name])


@pytest.mark.gpu
def test_what_waits_for_the_device_cannot_be_recorded(cuda: torch.device) -> None:
    recording, inputs = Recording(), {"x": torch.ones(2, device=cuda)}

    def wait(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        return [tensors["x"] * tensors["x"].sum().item()]

    recording(wait, inputs, seed=0)
    with pytest.raises(RecordingError, match="cannot be recorded"):
        recording(wait, inputs, seed=0)
    assert (torch.ones(2, device=cuda) + 1).sum().item() == 4  # the device still works


def test_another_result_than_the_computed_one_is_refused() -> None:
    want = torch.randn(50, generator=torch.Generator().manual_seed(0))
    check_same([want * 1.01, None], [want, None])
    check_same([want], [want * torch.nan])  # computing is no better
    for got in (want * 1.1, want * torch.nan, torch.zeros(50)):
        with pytest.raises(RecordingError, match="away from what is computed"):
            check_same([want, got], [want, want])


@pytest.mark.slow
@pytest.mark.parametrize("learn", ["softness", "softness,policy"])
def test_a_recorded_meta_step_learns_the_same(
    device: torch.device,
    make_trainer: Callable[..., Trainer],
    learn: str,
) -> None:
    words = ["data.root=embedded:mnist5k", "data.test_fraction=0", "data.img_size=28", "augment.shift=0.3"]
    words += [f"meta.learn=[{learn}]", "meta.engine=forward", "meta.batch_size=8", "meta.every=1", "meta.fraction=1"]
    words += ["train.tf32=false", *(["meta.probabilities=score"] if "policy" in learn else [])]
    values = []
    for recorded in (False, True):
        trainer = make_trainer(device, *words, f"meta.cuda_graphs={recorded}")
        batches = trainer.loader.batches(trainer.order.requests(0, 6))
        for _ in range(6):
            train_step(trainer, batches)
        values.append((trainer.meter.read()[0], trainer.meta.report()[1]))
    assert values[1][0] == pytest.approx(values[0][0], rel=1e-2)
    assert values[1][1] == pytest.approx(values[0][1], rel=1e-2)
    assert values[0][1]  # something was learned

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from fastaug.nets.clipping import Clipping
from fastaug.recipe.schema import Optim


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3, zero_init_last=False)
    network(torch.randn(4, 3, 32, 32)).mul(50).square().mean().backward()
    return network


def clipped(network: nn.Module, **keys: object) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """Gradients before and after clipping, and the norm that is told."""
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    norm = Clipping(Optim(**keys), network)(Accelerator(cpu=True), network)
    return before, {name: p.grad for name, p in network.named_parameters()}, float(norm)


def size(gradients: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([g.norm() for g in gradients.values()]).norm())


def test_without_a_limit_the_norm_is_told_alone(network: nn.Module) -> None:
    before, after, norm = clipped(network)
    assert norm == pytest.approx(size(before))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_by_norm(network: nn.Module) -> None:
    before, after, norm = clipped(network, clip_grad=0.5)
    assert norm == pytest.approx(size(before))
    assert size(after) == pytest.approx(0.5, rel=1e-4)


def test_by_value(network: nn.Module) -> None:
    before, after, norm = clipped(network, clip_grad=0.01, clip_mode="value")
    assert norm == pytest.approx(size(before))
    assert all(torch.equal(after[name], before[name].clamp(-0.01, 0.01)) for name in before)


def test_adaptively_but_for_the_head(network: nn.Module) -> None:
    before, after, _ = clipped(network, clip_grad=0.01, clip_mode="agc")
    for name, parameter in network.named_parameters():
        if name.startswith("fc."):
            assert torch.equal(before[name], after[name])
        elif parameter.ndim > 1:
            weights, gradient = (x.flatten(1).norm(dim=1) for x in (parameter.detach(), after[name]))
            assert (gradient <= 0.01 * weights.clamp(min=1e-3) * (1 + 1e-5)).all()
    assert any(not torch.equal(before[name], after[name]) for name in before)

import pytest
import timm
import torch
from torch import nn

from fastaug.errors import RecipeError
from fastaug.nets.model import build_model
from fastaug.nets.recomputing import backward_pass
from fastaug.recipe.schema import Model


def trained(checkpointing: bool, name: str = "test_efficientnet", **keys: object) -> dict[str, torch.Tensor]:
    """Gradients and buffers after a pass forward and back."""
    torch.manual_seed(0)
    network = build_model(Model(name=name, grad_checkpointing=checkpointing, **keys), 3)  # type: ignore[arg-type]
    torch.manual_seed(1)
    loss = network(torch.randn(4, 3, 32, 32)).square().mean()
    with backward_pass(network, recomputes=checkpointing):
        loss.backward()
    gradients = {f"{n} gradient": p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert all(module.momentum > 0 for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    return gradients | {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_it_changes_no_bit(name: str) -> None:
    """Neither gradients, dropout among them, nor BatchNorm statistics, which count every batch once."""
    kept, again = (trained(checkpointing, name, drop_path=0.2) for checkpointing in (False, True))
    assert kept.keys() == again.keys()
    assert [n for n in kept if not torch.equal(kept[n], again[n])] == []
    assert int(kept[next(n for n in kept if n.endswith("num_batches_tracked"))]) == 1


def test_networks_without_it_are_named() -> None:
    name = next(
        n for n in ("squeezenet1_0", "vgg11", "inception_v4", "xception41") if n in timm.list_models() and not _has(n)
    )
    refused = pytest.raises(RecipeError, match=rf"model\.grad_checkpointing: {name} does not have it")
    with refused, torch.device("meta"):
        build_model(Model(name=name, grad_checkpointing=True), 3)


def _has(name: str) -> bool:
    with torch.device("meta"):
        try:
            timm.create_model(name).set_grad_checkpointing(True)
        except (AttributeError, AssertionError):
            return False
    return True

"""The meta split's order, and the average of validation gradients."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.losses import validation_loss
from fastaug.meta.validation_gradient import ValidationGradient, meta_requests, validated_names
from fastaug.nets.zoo import offer_to_timm
from fastaug.recipe.schema import Augment


def taken(count, **kwargs):
    requests = meta_requests(**kwargs)
    return [next(requests) for _ in range(count)]


@settings(max_examples=50)
@given(size=st.integers(2, 40), batch=st.integers(2, 40), seed=st.integers(0, 9))
def test_every_image_comes_once_a_cycle(size, batch, seed):
    ids = np.arange(100, 100 + size)
    requests = taken(3 * size // batch + 2, ids=ids, seed=seed, batch_size=batch)
    assert all(len(request.ids) == batch for request in requests)
    sequence = np.concatenate([request.ids for request in requests])
    for start in range(0, len(sequence) - size + 1, size):
        assert sorted(sequence[start : start + size]) == ids.tolist()


def test_cycles_differ():
    sequence = np.concatenate([r.ids for r in taken(4, ids=np.arange(20), seed=0, batch_size=10)])
    assert (sequence[:20] != sequence[20:]).any()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_in_order(world):
    whole = taken(9, ids=np.arange(25), seed=3, batch_size=10)
    shares = [taken(9, ids=np.arange(25), seed=3, batch_size=10, world=world, rank=rank) for rank in range(world)]
    for request, pieces in zip(whole, zip(*shares, strict=True), strict=True):
        assert (np.concatenate([piece.ids for piece in pieces]) == request.ids).all()


def test_going_on_at_any_batch():
    whole = taken(9, ids=np.arange(7), seed=3, batch_size=3)
    later = taken(4, ids=np.arange(7), seed=3, batch_size=3, first=5)
    assert [r.ids.tolist() for r in whole[5:]] == [r.ids.tolist() for r in later]


class Scripted(ValidationGradient):
    """Gradients 1, 2, 3, ... instead of a network's."""

    def __init__(self, decay):
        super().__init__(
            torch.nn.Linear(1, 1),
            Endless(),
            None,
            lambda _: iter(()),
            loss=torch.nn.functional.cross_entropy,
            decay=decay,
            seed=0,
            total=lambda x: x,
            autocast=torch.no_grad,
            cycle=1,
        )

    def _gradient(self, *_):
        return {"w": torch.tensor([self.renewals + 1.0])}


class Endless:
    def batches(self, _):
        yield from iter(lambda: 0, 1)


def test_the_average_is_corrected_for_its_start():
    validation = Scripted(decay=0.8)
    values = []
    for _ in range(4):
        validation.renew({})
        values.append(validation.value()["w"].item())
    for n, value in enumerate(values, start=1):
        shares = 0.8 ** np.arange(n)[::-1]
        assert value == pytest.approx((shares * np.arange(1, n + 1)).sum() / shares.sum(), rel=1e-6)


def test_without_decay_the_last_one_counts():
    validation = Scripted(decay=0.0)
    for expected in (1.0, 2.0, 3.0):
        validation.renew({})
        assert validation.value()["w"].item() == expected


def test_state_goes_on():
    one, other = Scripted(decay=0.5), Scripted(decay=0.5)
    one.renew({})
    other.load_state_dict(one.state_dict())
    one.renew({})
    other.renew({})
    assert other.value()["w"].item() == one.value()["w"].item()


def test_a_gradient_that_is_not_finite_does_not_enter_the_average():
    script = iter([float("nan"), 2.0, float("inf"), 4.0])
    validation = Scripted(decay=0.5)
    validation._gradient = lambda *_: {"w": torch.tensor([next(script)])}
    values = []
    for _ in range(4):
        validation.renew({})
        values.append(validation.value()["w"].item())
    assert not np.isfinite(values[0])
    assert values[1:] == pytest.approx([2, 2, (0.5 * 2 + 4) / 1.5])
    assert (validation.renewals, validation.left_out) == (4, 2)


def test_an_average_of_more_weights_is_continued_in_those_that_are_asked_for():
    """Checkpoints of earlier versions have v in all weights where it is needed in the classifier's."""
    validation = Scripted(decay=0.5)
    script = iter([{"w": torch.tensor([2.0]), "other": torch.tensor([1.0])}, {"w": torch.tensor([4.0])}])
    validation._gradient = lambda *_: next(script)
    validation.renew({})
    validation.renew({})
    assert {name: v.item() for name, v in validation.value().items()} == pytest.approx({"w": (0.5 * 2 + 4) / 1.5})


def test_weights_of_layers_come_in_the_network_s_order():
    """Processes sum them in this order; that of a set differs from one interpreter to the next."""
    network = timm.create_model("test_resnet")
    names = validated_names(network, ["fc", "layer4"])
    assert names == [name for name, _ in network.named_parameters() if name.startswith(("layer4.", "fc."))]
    assert len(names) > 4
    assert validated_names(network, []) is None


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("test_resnet", ("layer4.", "fc.")),
        ("resnet50", ("layer4.", "fc.")),
        ("vit_small_patch16_224", ("blocks.11.", "norm.", "head.")),
        ("efficientnet_lite0", ("blocks.6.", "conv_head.", "bn2.", "classifier.")),
        ("convnext_atto", ("stages.3.", "head.")),
        ("wrn_40_2", ("layer3.", "bn.", "fc.")),
    ],
)
def test_auto_is_the_last_stage_and_the_classifier(name, inside):
    offer_to_timm()
    with torch.device("meta"):
        network = timm.create_model(name)
    trained = [name for name, _ in network.named_parameters()]
    assert validated_names(network, "auto") == [name for name in trained if name.startswith(inside)]
    next(network.get_classifier().parameters()).requires_grad_(False)
    assert len(validated_names(network, "auto")) == sum(name.startswith(inside) for name in trained) - 1


def test_auto_of_a_network_without_an_order_is_all():
    assert validated_names(torch.nn.Linear(2, 2), "auto") is None
    with torch.device("meta"):
        assert validated_names(timm.create_model("rdnet_tiny"), "auto") is None  # timm has a fine order only


@pytest.mark.parametrize("name", ["ce", "kl", "symmetric_kl", "focal", "bce", "gce"])
def test_each_validation_loss_is_summed_over_the_batch_and_differentiable(name):
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    loss = validation_loss(name, Augment(loss="focal", focal_gamma=1.5, gce_q=0.4))
    single = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(loss(logits, labels), single.sum())
    (slope,) = torch.autograd.grad(loss(logits, labels), logits)
    assert (slope.gather(1, labels[:, None]) < 0).all()
    if name == "focal":
        p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(single, -((1 - p) ** 1.5) * p.log())

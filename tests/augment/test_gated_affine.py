"""AutoDO's seven gated operations: start, draws, geometry on images of any shape, what stays within bounds."""

import math

import pytest
import torch

from fastaug.augment import gated_affine
from fastaug.augment.gated_affine import COUNT, NUMBERS, OPERATIONS, Drawn, Noise
from fastaug.seeding import Key, Stream

KEY = Key(seed=7, epoch=2, stream=Stream.LEARNED)
NAMES = [operation.name for operation in OPERATIONS]


def images(n, height=12, width=12, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def numbers(probability=0.0, magnitude=0.0, dtype=torch.float32):
    """Logits [14], the same for every operation."""
    return torch.tensor([probability, magnitude], dtype=dtype).repeat_interleave(COUNT)


def only(name, amount, n=1):
    """One operation by one amount."""
    opened = torch.tensor([[own == name for own in NAMES]]).expand(n, -1)
    return Drawn(opened * float(amount), opened)


def test_learning_starts_where_autodo_does():
    start = gated_affine.start()
    assert start.shape == (NUMBERS,)
    torch.testing.assert_close(gated_affine.probabilities(start), torch.full((COUNT,), 0.2))
    torch.testing.assert_close(gated_affine.magnitudes(start), torch.full((COUNT,), 0.5))
    reach = {operation.name: operation.reach[0] for operation in OPERATIONS}
    assert reach == {
        **{"rotate": 30, "translate_x": 0.45, "translate_y": 0.45, "shear_x": 0.3, "shear_y": 0.3},
        **dict.fromkeys(("scale_x", "scale_y"), math.log(1.5)),
    }


def test_gates_open_with_their_probability_and_amounts_are_normal():
    n, row = 20000, gated_affine.start()
    row[NAMES.index("rotate")], row[COUNT + NAMES.index("rotate")] = math.log(3), math.log(3)  # .75 and .75
    found = gated_affine.drawn(row[None], gated_affine.noise(KEY, range(n)))
    expected = torch.full((COUNT,), 0.2)
    expected[NAMES.index("rotate")] = 0.75
    assert (found.opened.float().mean(0) - expected).abs().max() < 4 * (0.25 / n) ** 0.5
    assert (found.amounts[~found.opened] == 0).all()
    turned = found.amounts[:, NAMES.index("rotate")][found.opened[:, NAMES.index("rotate")]]
    assert turned.std().item() == pytest.approx(0.75 * 30, rel=0.03)
    assert turned.mean().item() == pytest.approx(0, abs=1)
    corners = gated_affine.drawn(numbers(9.0, 9.0)[None], gated_affine.noise(KEY, range(n))).amounts
    largest = torch.tensor([operation.reach[0] for operation in OPERATIONS]) * gated_affine.LARGEST
    assert (corners.abs().max(0).values <= largest).all()
    assert (corners.abs().max(0).values > 0.95 * largest).all()


def test_draws_belong_to_seed_epoch_and_id():
    whole = gated_affine.noise(KEY, range(50))
    some = gated_affine.noise(KEY, [31, 4])
    assert torch.equal(some.gate, whole.gate[[31, 4]])
    assert torch.equal(some.amount, whole.amount[[31, 4]])
    for other in (KEY._replace(epoch=3), KEY._replace(seed=8)):
        assert not torch.equal(gated_affine.noise(other, [31, 4]).gate, some.gate)


def test_images_without_an_open_gate_are_what_they_were_to_the_bit():
    x = images(64)
    found = gated_affine.drawn(gated_affine.start()[None], gated_affine.noise(KEY, range(64)))
    acts = found.opened.any(1)
    assert 0 < acts.sum() < 64
    out = gated_affine.apply(x, found)
    assert torch.equal(out[~acts], x[~acts])
    assert (out[acts] != x[acts]).flatten(1).any(1).all()
    nothing = Drawn(torch.zeros(64, COUNT), torch.zeros(64, COUNT, dtype=torch.bool))
    assert torch.equal(gated_affine.apply(x, nothing), x)


RIGHT, DOWN = 8, 4  # where a spot is, in pixels from the centre
COS, SIN = math.cos(math.radians(30)), math.sin(math.radians(30))


@pytest.mark.parametrize(("height", "width"), [(41, 41), (41, 81), (81, 41)])
@pytest.mark.parametrize(
    ("name", "amount", "right", "down"),
    [
        ("rotate", 30, RIGHT * COS + DOWN * SIN, DOWN * COS - RIGHT * SIN),  # counter-clockwise, about the centre
        ("translate_x", 0.1, None, DOWN),
        ("translate_y", -0.1, RIGHT, None),
        ("shear_x", 0.3, RIGHT + 0.3 * DOWN, DOWN),
        ("shear_y", 0.3, RIGHT, DOWN + 0.3 * RIGHT),
        ("scale_x", math.log(1.5), 1.5 * RIGHT, DOWN),
        ("scale_y", 2 * math.log(1.5), RIGHT, 2.25 * DOWN),
        ("scale_x", -3 * math.log(1.5), RIGHT / 1.5**3, DOWN),  # AutoDO's 1 + .5 a is a mirror image here
    ],
)
def test_a_spot_goes_where_it_should_on_images_of_any_shape(name, amount, right, down, height, width):
    right = RIGHT + 0.1 * width if right is None else right
    down = DOWN - 0.1 * height if down is None else down
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    spot = torch.exp(-((x - RIGHT) ** 2 + (y - DOWN) ** 2) / 4).expand(1, 3, -1, -1)
    out = gated_affine.apply(spot.contiguous(), only(name, amount))[0, 0]
    assert (out * x).sum() / out.sum() == pytest.approx(right, abs=0.1)
    assert (out * y).sum() / out.sum() == pytest.approx(down, abs=0.1)


def test_the_border_is_repeated_and_all_operations_are_one_warp(monkeypatch):
    from fastaug.augment import differentiable_ops

    calls, warp = [], differentiable_ops.warp
    monkeypatch.setattr(differentiable_ops, "warp", lambda *a, **k: calls.append(1) or warp(*a, **k))
    grey = torch.full((32, 3, 9, 9), 0.6)
    found = gated_affine.drawn(numbers(6.0, 6.0)[None], gated_affine.noise(KEY, range(32)))
    torch.testing.assert_close(gated_affine.apply(grey, found), grey)
    assert calls == [1]


@pytest.mark.parametrize("extreme", [-1e30, -50.0, 50.0, 1e30])
def test_numbers_far_out_of_bounds_keep_finite_images_and_a_way_back(extreme):
    row = numbers(extreme, extreme).requires_grad_()
    p, m = gated_affine.probabilities(row), gated_affine.magnitudes(row)
    for share in (p, m):
        assert ((share > 0.002) & (share < 0.998)).all()
    slopes = torch.autograd.grad(p.sum() + m.sum(), row)[0]
    assert (slopes > 0.002).all()
    out = gated_affine.apply(images(64), gated_affine.drawn(row[None], gated_affine.noise(KEY, range(64))))
    assert out.isfinite().all()
    assert ((out >= 0) & (out <= 1)).all()


def test_a_closed_gate_passes_nothing_on_and_an_open_one_its_relaxed_slope():
    row = gated_affine.start().double().requires_grad_()
    drawn = Noise(torch.tensor([[3.0, -3.0] + [0.0] * 5]).double(), torch.full((1, COUNT), 0.5).double())
    found = gated_affine.drawn(row[None], drawn)
    assert found.opened.tolist() == [[True] + [False] * 6]
    (slope,) = torch.autograd.grad(found.amounts.sum(), row)
    expected, relaxed = torch.zeros(NUMBERS).double(), torch.sigmoid(row.detach()[0] + 3)
    amount = 0.5 * math.log(1.5)  # reach * z
    expected[0], expected[COUNT] = amount * 0.5 * relaxed * (1 - relaxed), amount * 0.25
    torch.testing.assert_close(slope, expected)


def test_closed_gates_would_add_noise_and_nothing_else():
    """The mean straight-through gradient of closed gates is 0: what is left out is noise."""
    n = 50_000
    noise = gated_affine.noise(KEY, range(n), torch.float64)
    perturbed = gated_affine.start().double()[None, :COUNT] + noise.gate
    slope = perturbed.sigmoid() * (1 - perturbed.sigmoid()) * 0.5 * noise.amount  # of a gate, at an image of slope 1
    closed = torch.where(perturbed > 0, 0, slope)
    assert (closed.mean(0) / (closed.std(0) / n**0.5)).abs().max() < 4

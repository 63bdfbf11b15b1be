"""Networks from noise to transformations: identity at first, bounded, keyed, differentiable; and known shifts."""

import math

import numpy as np
import pytest
import torch

from fastaug.augment.augmenter import KINDS, NUMBERS, Augmenter, matrix
from fastaug.augment.differentiable_ops import hue_around_grey, rotation, scaling, warp
from fastaug.augment.known_shifts import SHIFTS, known_shift
from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.recipe.schema import Augment, Data, Recipe
from fastaug.seeding import Key, Stream

KEY = Key(seed=7, epoch=2, stream=Stream.LEARNED)
WAYS = [(kind, conditioned) for kind in KINDS for conditioned in (False, True)]
GREY = (0.5, 0.5, 0.5)


def images(n, side=16, seed=0, dtype=torch.float64):
    small = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return 0.1 + 0.8 * torch.nn.functional.interpolate(small, (side, side), mode="bilinear")


def moved(kind="affine_color", *, conditioned=False, dtype=torch.float64, scale=0.2):
    """An augmenter whose last layer is not 0 any more."""
    net = Augmenter(kind, conditioned=conditioned, fill=GREY).to(dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.last.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return net


@pytest.mark.parametrize(("kind", "conditioned"), WAYS)
def test_images_are_untouched_at_first_and_the_last_layer_has_a_gradient(kind, conditioned):
    net, x = Augmenter(kind, conditioned=conditioned, fill=GREY), images(12, dtype=torch.float32)
    amounts = net.amounts(net.noise(KEY, range(12)), x)
    out = net.apply(x, amounts)
    assert amounts.shape == (12, len(KINDS[kind]))
    assert torch.equal(out, x)
    slopes = torch.autograd.grad((out * images(12, seed=1, dtype=torch.float32)).sum(), net.last.weight)[0]
    assert (slopes != 0).any(1).all()  # of every number


@pytest.mark.parametrize("kind", KINDS)
def test_the_spread_leaves_zero_with_the_first_step(kind):
    """Outputs that are the same for all noise stay so where hidden units have a mean of 0: here they have not."""
    net, x = Augmenter(kind), images(32, dtype=torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    out = net.apply(x, net.amounts(net.noise(KEY, range(32)), x))
    (out - images(32, seed=1, dtype=torch.float32)).square().mean().backward()
    optimizer.step()
    assert (net.drawn().std(0) / net.reach > 1e-3).all()


def test_amounts_never_leave_their_reach_and_images_stay_images():
    for conditioned in (False, True):
        net, x = moved(conditioned=conditioned, scale=1e3), images(20)
        amounts = net.amounts(net.noise(KEY, range(20)), x)
        assert (amounts.abs() <= net.reach).all()
        assert (amounts.abs().amax(0) > 0.99 * net.reach).all()
        out = net.apply(x, amounts)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1


def test_a_sample_is_transformed_alike_in_any_batch():
    net, ids = moved(dtype=torch.float32), np.arange(100, 200)
    whole = net.amounts(net.noise(KEY, ids))
    some = np.random.default_rng(0).permutation(100)[:33]
    assert torch.equal(net.amounts(net.noise(KEY, ids[some])), whole[some])
    assert torch.equal(net.amounts(net.noise(KEY, ids[:1])), whole[:1])
    assert not torch.equal(net.noise(KEY._replace(epoch=3), ids), net.noise(KEY, ids))
    assert torch.equal(net.noise(KEY.on(Stream.ORDER), ids), net.noise(KEY, ids))  # a stream of its own
    assert whole.std(0).min() > 0


def test_no_generator_is_touched_and_initial_weights_follow_the_seed():
    before = torch.get_rng_state()
    one, same, other = (Augmenter("affine", conditioned=True, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.first.weight, same.first.weight)
    assert torch.equal(one.encoder.first.weight, same.encoder.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


@pytest.mark.parametrize("side", [5, 28, 200])
def test_a_conditioned_one_sees_images_of_any_size_and_each_for_itself(side):
    net, x = moved(conditioned=True), images(6, side)
    noise = net.noise(KEY, [1] * 6)  # the same for all: what differs is the image
    amounts = net.amounts(noise, x)
    assert (amounts.std(0) > 0).all()
    torch.testing.assert_close(net.amounts(noise[:2], x[:2]), amounts[:2])
    out = net.apply(x, amounts)
    slopes = torch.autograd.grad(out, net.encoder.first.weight, images(6, side, seed=1) - 0.4)[0]
    assert slopes.isfinite().all()
    assert slopes.any()
    with pytest.raises(ValueError, match="needs the images"):
        net.amounts(noise)


@pytest.mark.parametrize("conditioned", [False, True])
def test_gradients_are_those_of_finite_differences(conditioned):
    net, x, towards = moved(conditioned=conditioned, scale=0.1), images(16), images(16, seed=1) - 0.4
    noise = net.noise(KEY, range(16))

    def value():
        return (net.apply(x, net.amounts(noise, x)) * towards).sum()

    draw = torch.Generator().manual_seed(0)
    found = torch.autograd.grad(value(), list(net.parameters()))
    for slope, parameter in zip(found, net.parameters(), strict=True):
        way, ends = torch.randn(parameter.shape, generator=draw, dtype=torch.float64), []
        for step in (1e-7, -2e-7):
            with torch.no_grad():
                parameter += step * way
            ends.append(value().item())
        with torch.no_grad():
            parameter += 1e-7 * way
        expected = (ends[0] - ends[1]) / 2e-7
        assert (slope * way).sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_numbers_mean_what_their_names_say():
    """In the order: scaled, sheared, turned, then moved."""
    point = torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)  # in the output: right and down of the centre
    given = {"translate_x": 0.1, "translate_y": -0.2, "rotate": 30.0, "shear_x": 0.2}
    given |= {"scale_x": math.log(2), "scale_y": math.log(0.5)}
    amounts = {name: torch.tensor([value], dtype=torch.float64) for name, value in given.items()}
    source = matrix(amounts)[0] @ point
    x, y = 2 * source[0], 0.5 * source[1]  # scaled: twice as wide, half as high
    x, y = x + 0.2 * y, y  # sheared: what is below the centre, to the right
    turn = math.radians(30)  # counter-clockwise, y down
    x, y = math.cos(turn) * x + math.sin(turn) * y, -math.sin(turn) * x + math.cos(turn) * y
    assert [float(x) + 0.2, float(y) - 0.4] == pytest.approx([0.25, 0.5])  # moved, in shares of the side of 2
    assert NUMBERS["scale_x"].plain(torch.tensor(math.log(1.5))).item() == pytest.approx(1.5)
    assert NUMBERS["contrast"].plain(torch.tensor(0.25)).item() == 1.25
    assert NUMBERS["rotate"].plain(torch.tensor(30.0)).item() == 30
    with pytest.raises(ValueError, match="unknown kind of augmenter 'afine'"):
        Augmenter("afine")


def test_hue_turns_red_into_green_keeps_grey_and_is_nothing_at_zero():
    red = torch.zeros(1, 3, 3, 3)
    red[:, 0] = 0.6
    green = hue_around_grey(red, torch.tensor([120.0]))
    torch.testing.assert_close(green, red.roll(1, 1), atol=1e-6, rtol=0)
    grey = torch.full((1, 3, 3, 3), 0.3)
    torch.testing.assert_close(hue_around_grey(grey, torch.tensor([50.0])), grey)
    x = images(3, dtype=torch.float32)
    assert torch.equal(hue_around_grey(x, torch.zeros(3)), x)


# ---- known shifts ----


def test_known_shifts_turn_move_and_zoom():
    x = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    x[:, :, 4, 6] = 1.0
    moved = known_shift(x, "shift4px", (0.0, 0.0, 0.0))
    torch.testing.assert_close(moved, x.roll((4, 4), (2, 3)))
    smooth = images(2)
    turned = known_shift(smooth, "rotate45", GREY)
    torch.testing.assert_close(turned, warp(smooth, rotation(torch.full((2,), 45.0)), GREY))
    block = torch.zeros(1, 1, 24, 24).expand(1, 3, 24, 24).clone()
    block[:, :, 6:18, 6:18] = 1.0  # 12 pixels wide
    for name, width in (("zoom1.5", 18), ("zoom0.75", 9)):
        shown = known_shift(block, name, (0.0, 0.0, 0.0))
        assert shown[0, 0, 12].sum().item() == pytest.approx(width, abs=0.01)
    corner = known_shift(smooth, "zoom0.75", GREY)[:, :, 0, 0]
    torch.testing.assert_close(corner, torch.full_like(corner, 0.5))  # what is uncovered has the mean colour
    undone = warp(
        warp(smooth, scaling(torch.full((2,), 1.5), torch.full((2,), 1.5))), scaling(*torch.full((2, 2), 1 / 1.5))
    )
    torch.testing.assert_close(undone[:, :, 8, 8], smooth[:, :, 8, 8], atol=0.05, rtol=0)


@pytest.mark.parametrize("name", SHIFTS)
def test_held_out_images_are_shifted_and_training_images_are_not(name):
    ids = torch.arange(4)
    batch = Batch((images(4, dtype=torch.float32) * 255).round().byte().permute(0, 2, 3, 1), ids, ids, ids)

    def augment(known_shift):
        return BatchAugment(Recipe(data=Data(img_size=16, known_shift=known_shift), augment=Augment(hflip=0.0)), 4)

    plain, shifted = augment("none"), augment(name)
    assert torch.equal(plain.training(batch, 0)[0], shifted.training(batch, 0)[0])
    mean, std = (torch.tensor(values)[:, None, None] for values in (Data().mean, Data().std))
    expected = (known_shift(batch.images.permute(0, 3, 1, 2) / 255, name, Data().mean) - mean) / std
    torch.testing.assert_close(shifted.evaluation(batch), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(shifted.evaluation(batch), shifted.evaluation(batch))
    assert not torch.allclose(shifted.evaluation(batch), plain.evaluation(batch), atol=0.1)


def test_training_images_can_be_shifted_too():
    """The control that knows the shift: what it trains on is what is evaluated."""
    ids = torch.arange(4)
    batch = Batch((images(4, dtype=torch.float32) * 255).round().byte().permute(0, 2, 3, 1), ids, ids, ids)
    data = Data(img_size=16, known_shift="zoom1.5", known_shift_train=True)
    augment = BatchAugment(Recipe(data=data, augment=Augment(hflip=0.0)), 4)
    torch.testing.assert_close(augment.training(batch, 0)[0], augment.evaluation(batch))
    torch.testing.assert_close(augment.part(batch, 0, ids).images, augment.evaluation(batch))

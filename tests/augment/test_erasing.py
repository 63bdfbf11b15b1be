import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.random_erasing import RandomErasing as TimmErasing

from fastaug.augment.erasing import Cutout, RandomErasing
from fastaug.seeding import Key, Stream

KEY = Key(seed=3, epoch=1, stream=Stream.ERASE)
SIZE = (32, 40)
IDS = np.arange(50, 90)


def images(n, dtype=torch.float32):
    return torch.full((n, 3, *SIZE), 5.0, dtype=dtype)


@settings(max_examples=40)
@given(st.integers(4, 64), st.integers(4, 64), st.integers(1, 3), st.integers(0, 2**63))
def test_boxes_lie_inside_and_are_smaller_than_the_image(height, width, recount, seed):
    params = RandomErasing(1.0, (height, width), recount=recount).sample(KEY._replace(seed=seed), np.arange(50))
    top, bottom, left, right = np.moveaxis(params.box, -1, 0)
    assert ((top >= 0) & (top <= bottom) & (bottom <= height)).all()
    assert ((left >= 0) & (left <= right) & (right <= width)).all()
    assert ((bottom - top < height) & (right - left < width)).all()


@pytest.mark.parametrize("recount", [1, 3])
def test_area_shape_place_and_number_are_distributed_as_timms(recount):
    n, size = 3000, (64, 64)
    random.seed(0)
    theirs = TimmErasing(0.7, max_count=recount, device="cpu")
    erased = theirs(torch.ones(n, 1, *size))[:, 0] == 0
    ours = RandomErasing(0.7, size, recount=recount)
    got = ours.apply(torch.ones(n, 3, *size), ours.sample(KEY, np.arange(n)))[:, 0] == 0
    for statistic in (
        lambda m: m.flatten(1).any(1).float(),  # how often
        lambda m: m.flatten(1).float().mean(1),  # area
        lambda m: m.any(1).sum(1).float(),  # width covered
        lambda m: m.any(2).sum(1).float(),  # height covered
        lambda m: m[:, 0].any(1).float(),  # touches the top
        lambda m: m[:, -1].any(1).float(),  # touches the bottom
        lambda m: m[:, :, 0].any(1).float(),  # touches the left
        lambda m: m[:, :, -1].any(1).float(),  # touches the right
    ):
        a, b = statistic(erased), statistic(got)
        error = ((a.var() + b.var()) / n).sqrt()
        assert (a.mean() - b.mean()).abs() < 4 * error
        spread = (a - a.mean()).abs(), (b - b.mean()).abs()
        error = ((spread[0].var() + spread[1].var()) / n).sqrt()
        assert (spread[0].mean() - spread[1].mean()).abs() < 4 * error


@pytest.mark.parametrize("remode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("recount", [1, 3])
def test_an_image_does_not_depend_on_its_batch_or_layout(remode, recount):
    policy = RandomErasing(0.6, SIZE, remode, recount)
    together = policy.apply(images(len(IDS)), policy.sample(KEY, IDS))
    for part in np.array_split(np.arange(len(IDS))[::-1], [1, 7]):
        alone = images(len(part)).to(memory_format=torch.channels_last)
        policy.apply(alone, policy.sample(KEY, IDS[part]))
        assert torch.equal(alone, together[part.copy()])


def test_draws_depend_on_seed_and_epoch_and_have_a_stream_of_their_own():
    policy = RandomErasing(1.0, SIZE, "rand")
    base = policy.sample(KEY, IDS)
    for key in (KEY._replace(seed=4), KEY._replace(epoch=2)):
        other = policy.sample(key, IDS)
        assert all((a != b).any() for a, b in zip(base, other, strict=True))
    same = policy.sample(KEY.on(Stream.ORDER), IDS)
    assert all((a == b).all() for a, b in zip(base, same, strict=True))


def test_global_generators_are_left_alone():
    policy = RandomErasing(1.0, SIZE, "pixel")
    before = torch.get_rng_state()
    policy.apply(images(4), policy.sample(KEY, IDS[:4]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("remode", ["const", "rand", "pixel"])
def test_only_the_boxes_change_and_the_mode_says_to_what(remode):
    policy = RandomErasing(0.7, SIZE, remode, 2)
    params = policy.sample(KEY, IDS)
    out = policy.apply(images(len(IDS)), params)
    outside = torch.ones(len(IDS), *SIZE, dtype=torch.bool)
    inside = []
    for i, boxes in enumerate(params.box):
        for top, bottom, left, right in boxes:
            outside[i, top:bottom, left:right] = False
        top, bottom, left, right = boxes[-1]  # the last one is on top
        if bottom > top:
            inside.append(out[i, :, top:bottom, left:right].flatten(1))
    assert (out.movedim(1, -1)[outside] == 5).all()
    assert (out.movedim(1, -1)[~outside] != 5).all()
    assert len(inside) > 5
    if remode == "const":
        assert all((box == 0).all() for box in inside)
    elif remode == "rand":
        assert all((box == box[:, :1]).all() for box in inside)
    values = torch.cat([box if remode == "pixel" else box[:, :1] for box in inside], 1)
    if remode != "const":
        assert len(values.unique()) > values.numel() * 0.95
        assert (values.mean() / values.std() * values.numel() ** 0.5).abs() < 4
        assert 0.7 < values.std() < 1.3


def test_probability_of_zero_and_one():
    never, always = (RandomErasing(p, (64, 64)).sample(KEY, np.arange(500)).box for p in (0.0, 1.0))
    assert not never.any()
    assert ((always[..., 1] > always[..., 0]) & (always[..., 3] > always[..., 2])).all()


def test_an_image_too_small_for_any_box_is_left_alone():
    policy = RandomErasing(1.0, (1, 1))
    one = torch.ones(3, 3, 1, 1)
    assert (policy.apply(one, policy.sample(KEY, [0, 1, 2])) == 1).all()


def test_half_precision_and_in_place():
    policy = RandomErasing(1.0, SIZE, "rand")
    x = images(4, torch.bfloat16)
    out = policy.apply(x, policy.sample(KEY, IDS[:4]))
    assert out is x
    assert (x != 5).any()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"reprob": 1.5}, r"reprob.*1\.5"),
        ({"reprob": -0.1}, "reprob"),
        ({"remode": "noise"}, "remode 'noise'; known: const, rand, pixel"),
        ({"recount": 0}, "recount.*0"),
    ],
)
def test_settings_that_cannot_be_are_named(options, names):
    with pytest.raises(ValueError, match=names):
        RandomErasing(**{"reprob": 0.5, "img_size": SIZE, **options})


def test_images_that_do_not_fit_are_named():
    policy = RandomErasing(1.0, SIZE)
    params = policy.sample(KEY, IDS[:4])
    with pytest.raises(ValueError, match=r"floating.*uint8"):
        policy.apply(images(4).to(torch.uint8), params)
    with pytest.raises(ValueError, match=r"size \(32, 40\), found .*\(4, 3, 40, 32\)"):
        policy.apply(images(4).transpose(2, 3), params)
    with pytest.raises(ValueError, match="3 images with the parameters of 4"):
        policy.apply(images(3), params)


@settings(max_examples=40)
@given(st.integers(4, 64), st.integers(4, 64), st.floats(0.05, 1.0))
def test_cutout_blanks_the_part_of_one_square_that_lies_inside(height, width, length):
    cutout = Cutout(length, (height, width))
    result = cutout.apply(torch.ones(200, 3, height, width), cutout.sample(KEY, np.arange(200)))
    side = round(length * height)
    blank = result[:, 0] == 0
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert (blank.sum((1, 2)) == rows * columns).all()
    assert rows.max() <= side
    assert columns.max() <= side
    if side <= min(height, width) // 2:
        assert rows.max() == side
        assert columns.max() == side
    assert (rows >= min(side // 2, height)).all()


def test_cutout_is_keyed_and_its_centre_covers_the_image():
    cutout = Cutout(0.25, (16, 16))
    boxes = cutout.sample(KEY, np.arange(4000)).box[:, 0]
    assert (cutout.sample(KEY, [7]).box[0, 0] == boxes[7]).all()
    assert len(np.unique(boxes, axis=0)) == 256


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_every_channel_has_a_value_of_its_own_in_boxes_that_colours_have(channels):
    blank = torch.full((40, channels, *SIZE), 5.0)
    usual = RandomErasing(0.9, SIZE, "rand").sample(KEY, IDS)
    erasing = RandomErasing(0.9, SIZE, "rand", channels=channels)
    params = erasing.sample(KEY, IDS)
    assert np.array_equal(params.box, usual.box)
    if channels < 3:
        assert np.array_equal(params.value, usual.value)
    erased = erasing.apply(blank.clone(), params)
    for image, (top, bottom, left, right), value in zip(erased, params.box[:, 0], params.value[:, 0], strict=True):
        box = image[:, top:bottom, left:right]
        assert torch.equal(box, torch.from_numpy(value[:channels])[:, None, None].expand_as(box))
        assert len(set(value[:channels].tolist())) == channels
    cutout = Cutout(0.5, SIZE)
    assert set(cutout.apply(blank, cutout.sample(KEY, IDS)).unique().tolist()) == {0.0, 5.0}

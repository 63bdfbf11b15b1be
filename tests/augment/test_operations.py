"""Every operation of every set: against Pillow and torchvision at fixed values, on images of any shape, one by one."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from fastaug.augment.differentiable_ops import apply_drawn, rotation, warp
from fastaug.augment.local_ops import KNOTS
from fastaug.augment.operation_sets import transforms_of
from fastaug.recipe.operation_files import FUNCTIONS, Operation

GREY_LEVEL = 1 / 255
# A range for each function, which reaches to both sides where there are two.
RANGES = {
    "rotate": (-30, 30),
    "translate_x": (-0.33, 0.33),
    "translate_y": (-0.33, 0.33),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "scale": (1 / 1.5, 1.5),
    "scale_x": (1 / 1.5, 1.5),
    "scale_y": (1 / 1.5, 1.5),
    "perspective": (-0.3, 0.3),
    "elastic": (-0.1, 0.1),
    "brightness": (0.1, 1.9),
    "contrast": (0.1, 1.9),
    "saturation": (0.1, 1.9),
    "sharpness": (0.1, 1.9),
    "hue": (-0.5, 0.5),
    "posterize": (4, 8),
    "solarize": (0, 1),
    "equalize": (0, 1),
    "autocontrast": (0, 1),
    "invert": (0, 1),
    "cutout": (0, 0.5),
    "blur": (0, 0.05),
    "stroke": (-2, 2),
}
SWITCHES = ("flip_x", "flip_y")
ALL = transforms_of(
    [Operation(name, name, *ends) for name, ends in RANGES.items()]
    + [Operation(name, name, fixed=True) for name in SWITCHES]
)
BY_NAME = {transform.name: transform for transform in ALL}
STEPS = ("posterize", "solarize", "equalize")  # straight through in the images
each = pytest.mark.parametrize("transform", ALL, ids=[t.name for t in ALL])


def levels(n=4, height=24, width=36, seed=0, dtype=torch.float32):
    """Images of 8 bits, smooth but for noise."""
    g = torch.Generator().manual_seed(seed)
    small = torch.nn.functional.interpolate(torch.rand(n, 3, 5, 5, generator=g), (height, width), mode="bilinear")
    noisy = small + 0.1 * torch.rand(n, 3, height, width, generator=g) - 0.05
    return ((noisy.clamp(0, 1) * 255).round() / 255).to(dtype)


def amounts(transform, factor, n=4, dtype=torch.float32):
    """Amounts that a magnitude of `factor` and the farthest noise give, each number of an image another."""
    reach = torch.tensor(transform.reach, dtype=dtype)
    scale = torch.ones_like(reach)
    scale[len(reach) - transform.free :] = 1 / factor if factor else 1
    signs = torch.ones(n, len(reach), dtype=dtype)
    signs[:, 1::2] = -0.5
    return reach * scale * factor * signs * (-1 if transform.noise[1] == 0 else 1)


def to_pillow(image):
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def from_pillow(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def test_every_function_of_a_file_has_a_transform_here():
    assert {*RANGES, *SWITCHES, "identity"} == set(FUNCTIONS)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_amount_zero_is_exactly_the_image(transform, dtype):
    images = torch.rand(3, 3, 20, 27, generator=torch.Generator().manual_seed(0), dtype=dtype)
    images[:, :, 4:9, 4:9] = 0
    images[:, :, 9:12, 4:9] = 1
    amount = torch.zeros(3, len(transform.reach), dtype=dtype)
    if transform.free:
        amount[:, -transform.free :] = 0.3
    assert torch.equal(transform.apply(images, amount), images)


@each
def test_an_image_is_the_same_alone_and_among_others_in_the_range_of_colours(transform):
    images, amount = levels(5), amounts(transform, 0.7, 5) * torch.tensor([1, -0.3, 0.5, 0.0, 0.9])[:, None]
    if transform.noise[0] * transform.noise[1] == 0 and transform.name not in ("posterize", "solarize", "cutout"):
        amount = amount.abs()
    together = transform.apply(images, amount)
    assert ((together >= -1e-6) & (together <= 1 + 1e-6)).all()
    for i in range(5):
        torch.testing.assert_close(
            transform.apply(images[i : i + 1], amount[i : i + 1])[0], together[i], atol=1e-6, rtol=0
        )


@each
def test_many_at_once_equal_each_on_its_own_on_any_shape(transform):
    images, amount = levels(3, 30, 21), amounts(transform, 0.7, 3)
    wide = torch.zeros(3, 1, 2 * KNOTS**2)
    wide[:, 0, : len(transform.reach)] = amount
    op = torch.full((3, 1), 1 + ALL.index(transform))
    assert torch.equal(apply_drawn(images, op, wide, ALL), transform.apply(images, amount))


@pytest.mark.parametrize("transform", [t for t in ALL if t.name not in SWITCHES], ids=lambda t: t.name)
def test_the_gradient_in_the_amount_is_that_of_finite_differences(transform):
    images = levels(4, dtype=torch.float64)
    towards = levels(4, seed=1, dtype=torch.float64) - 0.4
    amount = amounts(transform, 0.6371, dtype=torch.float64).requires_grad_()
    found = torch.autograd.grad(transform.apply(images, amount), amount, towards)[0]
    assert found.isfinite().all()
    assert found.any()
    if transform.name == "solarize":  # a step: that of a sigmoid in its place
        return
    step = 1e-6
    with torch.no_grad():
        for number in range(min(amount.shape[1], 5)):
            shift = torch.zeros_like(amount)
            shift[:, number] = step * transform.reach[number]
            ends = [transform.apply(images, amount + sign * shift) for sign in (1, -1)]
            expected = ((ends[0] - ends[1]) * towards).sum((1, 2, 3)) / (2 * step * transform.reach[number])
            torch.testing.assert_close(found[:, number], expected, rtol=1e-3, atol=1e-4)


@each
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_gradients_are_finite_on_flat_images_and_at_both_ends(transform, value, factor):
    images = torch.full((2, 3, 8, 9), value, requires_grad=True)
    amount = amounts(transform, factor, 2).requires_grad_()
    out = transform.apply(images, amount)
    found = torch.autograd.grad(out.sum(), (amount, images), allow_unused=True)
    assert found[1].isfinite().all()
    assert transform.name in SWITCHES or found[0].isfinite().all()


@pytest.mark.parametrize("name", STEPS)
def test_operations_with_steps_are_straight_through_in_the_images(name):
    images = levels(2).requires_grad_()
    out = BY_NAME[name].apply(images, amounts(BY_NAME[name], 0.5, 2))
    torch.testing.assert_close(torch.autograd.grad(out.sum(), images)[0], torch.ones_like(images))


# ---- as Pillow and torchvision have them ----

PILLOW = {
    "brightness": lambda x, v: ImageEnhance.Brightness(x).enhance(v),
    "contrast": lambda x, v: ImageEnhance.Contrast(x).enhance(v),
    "saturation": lambda x, v: ImageEnhance.Color(x).enhance(v),
    "sharpness": lambda x, v: ImageEnhance.Sharpness(x).enhance(v),
    "posterize": lambda x, v: ImageOps.posterize(x, int(v)),
    "solarize": lambda x, v: ImageOps.solarize(x, int(v * 256)),
    "equalize": lambda x, _: ImageOps.equalize(x),
    "autocontrast": lambda x, _: ImageOps.autocontrast(x),
    "invert": lambda x, _: ImageOps.invert(x),
    "stroke": lambda x, v: x.filter(ImageFilter.MaxFilter(3) if v > 0 else ImageFilter.MinFilter(3)),
    "flip_x": lambda x, _: ImageOps.mirror(x),
    "flip_y": lambda x, _: ImageOps.flip(x),
    "rotate": lambda x, v: x.rotate(v, Image.Resampling.BILINEAR),
}
# name, value in the function's unit, amount that this is
CASES = [
    *(
        (name, value, value - 1)
        for name in ("brightness", "contrast", "saturation", "sharpness")
        for value in (0.3, 1.8)
    ),
    *(("posterize", bits, bits - 8) for bits in (4, 6)),
    *(("solarize", level / 256, (level - 0.5) / 255 - 1) for level in (64, 192)),
    *((name, 1, 1) for name in ("equalize", "autocontrast", "invert", "stroke", "flip_x", "flip_y")),
    ("stroke", -1, -1),
    ("rotate", 25, 25),
]


@pytest.mark.parametrize(("name", "value", "amount"), CASES)
def test_it_does_what_pillow_does_to_a_grey_level_or_so(name, value, amount):
    images = levels(3)
    found = BY_NAME[name].apply(images, torch.full((3, 1), float(amount)))
    for image, changed in zip(images, found, strict=True):
        expected = from_pillow(PILLOW[name](to_pillow(image), value))
        difference = (changed - expected).abs()
        if name == "rotate":  # Pillow's bilinear uncovers its border otherwise
            difference = difference[:, 8:16, 12:24]
        assert difference.max() < 3 * GREY_LEVEL
        assert (changed - image).abs().max() > 0.01


def test_it_does_what_torchvision_does():
    images = levels(3)
    hue = BY_NAME["hue"].apply(images, torch.tensor([[0.2], [-0.4], [0.5]]))
    expected = torch.stack([V.adjust_hue(x, h) for x, h in zip(images, (0.2, -0.4, 0.5), strict=True)])
    torch.testing.assert_close(hue, expected, atol=1e-4, rtol=0)
    blurred = BY_NAME["blur"].apply(images, torch.full((3, 1), 0.05))  # 1.2 pixels of 24
    torch.testing.assert_close(blurred, V.gaussian_blur(images, [9, 9], [1.2, 1.2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(24, 36), (36, 24), (30, 30)])
def test_geometry_is_that_of_torchvision_on_any_shape(height, width):
    images = levels(1, height, width)
    bilinear = {"interpolation": InterpolationMode.BILINEAR}

    def affine(**keywords):
        usual = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
        return V.affine(images, **(usual | keywords), **bilinear)

    def found(name, amount):
        return BY_NAME[name].apply(images, torch.tensor([[amount]]))

    slope = -math.degrees(math.atan(0.3))
    for name, amount, expected in (
        ("rotate", 25.0, V.rotate(images, 25.0, **bilinear)),
        ("translate_x", 0.25, affine(translate=[0.25 * width, 0.0])),
        ("translate_y", -0.25, affine(translate=[0.0, -0.25 * height])),
        ("shear_x", 0.3, affine(shear=[slope, 0.0])),
        ("shear_y", 0.3, affine(shear=[0.0, slope])),
        ("scale", math.log(1.4), affine(scale=1.4)),
        ("scale", math.log(0.8), affine(scale=0.8)),
        ("flip_x", 1.0, V.horizontal_flip(images)),
        ("flip_y", 1.0, V.vertical_flip(images)),
    ):
        torch.testing.assert_close(found(name, amount), expected, atol=1e-4, rtol=0, msg=name)


def test_shifts_may_be_in_pixels_whatever_the_shape():
    x, y = transforms_of([Operation(f"translate_{a}", f"translate_{a}", -9, 9, absolute=True) for a in "xy"])
    images = levels(2, 20, 31)
    right = x.apply(images, torch.full((2, 1), 7.0))
    torch.testing.assert_close(right[..., 7:], images[..., :-7], atol=1e-5, rtol=0)
    down = apply_drawn(images, torch.tensor([[2], [2]]), torch.full((2, 1, 1), 4.0), [x, y])
    torch.testing.assert_close(down[:, :, 4:], images[:, :, :-4], atol=1e-5, rtol=0)


def test_perspective_is_that_of_its_corners():
    height, width = 24, 36
    images, (a, b) = levels(1, height, width), (0.2, -0.1)
    found = BY_NAME["perspective"].apply(images, torch.tensor([[a, b]]))
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    read = [(x / (1 + a * x + b * y), y / (1 + a * x + b * y)) for x, y in corners]
    in_pixels = [[[(x + 1) * width / 2, (y + 1) * height / 2] for x, y in points] for points in (read, corners)]
    expected = V.perspective(images, *in_pixels, interpolation=InterpolationMode.BILINEAR)
    assert (found - expected)[:, :, 2:-2, 2:-2].abs().mean() < 0.015  # torchvision's corners are whole pixels
    assert (found - images)[:, :, 2:-2, 2:-2].abs().mean() > 0.04


def test_horizontal_and_vertical_stretches_make_a_zoom():
    images, log = levels(2, 20, 31), torch.full((2, 1, 1), math.log(1.3))
    number = {t.name: k for k, t in enumerate(ALL, 1)}

    def drawn(*names):
        op = torch.tensor([[number[n] for n in names]] * 2)
        wide = torch.zeros(2, len(names), 2 * KNOTS**2)
        wide[..., :1] = log
        return apply_drawn(images, op, wide, ALL)

    torch.testing.assert_close(drawn("scale_x", "scale_y"), drawn("scale"), atol=1e-5, rtol=0)


def test_elastic_with_equal_displacements_is_a_shift():
    images, amount = levels(2, 20, 40), torch.zeros(2, 2 * KNOTS**2)
    amount[:, : KNOTS**2] = -0.25
    found = BY_NAME["elastic"].apply(images, amount)
    torch.testing.assert_close(found[..., 10:], images[..., :-10], atol=1e-4, rtol=0)


def test_cutout_covers_its_square_to_the_pixel():
    images = torch.zeros(1, 3, 20, 40)
    white = transforms_of([Operation("hole", "cutout", 0, 0.5)], (1.0, 1.0, 1.0))[0]
    found = white.apply(images, torch.tensor([[0.4, 0.5, 0.0]]))
    expected = torch.zeros_like(images)
    expected[:, :, 6:14, 26:34] = 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    half = white.apply(images, torch.tensor([[0.425, 0.5, 0.0]]))
    assert float(half[0, 0, 10].sum()) == pytest.approx(8.5, abs=1e-4)


def test_stroke_of_half_a_pixel_is_half_way_and_two_are_twice_one():
    images = levels(2)
    stroke = BY_NAME["stroke"].apply
    one, two, half = (stroke(images, torch.full((2, 1), v)) for v in (1.0, 2.0, 0.5))
    torch.testing.assert_close(half, (images + one) / 2)
    torch.testing.assert_close(two, stroke(one, torch.full((2, 1), 1.0)))


@pytest.mark.parametrize("fill", ["border", "reflect"])
def test_what_a_warp_uncovers_may_continue_the_image(fill):
    images = levels(1, 12, 12)
    shift = torch.eye(3)[None].clone()
    shift[0, 0, 2] = -2 * 4 / 12  # 4 pixels to the right
    out = warp(images, shift, fill)
    shown = images[..., :1].expand(-1, -1, -1, 4) if fill == "border" else images[..., :4].flip(-1)
    torch.testing.assert_close(out[..., :4], shown, atol=1e-5, rtol=0)
    assert torch.equal(warp(images, rotation(torch.zeros(1)), fill), images)

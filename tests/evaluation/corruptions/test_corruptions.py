"""Corruptions against formulations of their own, written as plain as can be."""

import colorsys
import math

import numpy as np
import numpy.typing as npt
import pytest

from fastaug.errors import RecipeError
from fastaug.evaluation.changed_images import ChangesByEpoch
from fastaug.evaluation.corruptions import (
    NAMES,
    SEVERITIES,
    Corruption,
    blur,
    checked_names,
    checked_severities,
    digital,
    error_table,
    noise,
    weather,
)
from fastaug.evaluation.corruptions.published import ALEXNET, CIFAR, IMAGENET
from fastaug.seeding import Key

Pixels = npt.NDArray[np.uint8]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def picture(side: int) -> Pixels:
    """Smooth colours with an edge through them, and black and white places."""
    y, x = np.mgrid[:side, :side] / side
    values = np.stack([np.sin(9 * x) ** 2, np.cos(5 * y) ** 2, (x + y > 1) * 0.9 + 0.05], -1)
    values[: side // 8] = 0
    values[-(side // 8) :] = 1
    return (values * 255).astype(np.uint8)


@pytest.mark.parametrize("side", [8, 28, 33, 96])
@pytest.mark.parametrize("name", NAMES)
def test_every_size_is_taken_and_its_image_left_alone(name: str, side: int) -> None:
    image = picture(side)
    before = image.copy()
    for severity in (1, 5):
        change = Corruption(name, severity, side)
        found = change.apply_one(image, change.values(0, np.array([7]))[0])
        assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)
    assert not np.array_equal(found, image)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("glass_blur", "elastic_transform")])
def test_the_highest_severity_is_furthest_from_the_image(name: str, side: int) -> None:
    """But for glass blur and elastic, whose published severities are of different kinds."""
    image, ids = picture(side), np.arange(3)
    distances = []
    for severity in (1, 5):
        change = Corruption(name, severity, side)
        changed = [change.apply_one(image, value).astype(float) for value in change.values(0, ids)]
        distances.append(sum(float(np.square(one - image).mean()) for one in changed))
    assert distances[0] < distances[1]


def test_draws_are_of_seed_corruption_severity_and_id_alone() -> None:
    ids = np.arange(10)
    drawn = Corruption("fog", 2, 32).values(0, ids)
    assert drawn[3:5] == Corruption("fog", 2, 224).values(0, ids[3:5])
    others = [("fog", 3, 0), ("snow", 2, 0), ("fog", 2, 1)]
    assert len({*drawn, *(v for name, s, seed in others for v in Corruption(name, s, 32).values(seed, ids))}) == 40
    transform = ChangesByEpoch([Corruption("fog", 1, 32), Corruption("fog", 2, 32)])
    value = transform.sample(Key(0, 1, 8), ids)[3]
    expected = Corruption("fog", 2, 32).apply_one(picture(32), drawn[3])
    assert np.array_equal(transform.apply_one(picture(32), value), expected)


def test_noise_has_the_published_amount() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert noise.gaussian(grey, 0.08, rng()).std() == pytest.approx(0.08 * 255, rel=0.02)
    assert noise.shot(grey, 60, rng()).std() == pytest.approx(255 * math.sqrt(128 / 255 / 60), rel=0.02)
    salted = noise.impulse(grey, 0.27, rng())
    assert (salted == 0).mean() == pytest.approx(0.135, abs=0.005)
    assert (salted == 255).mean() == pytest.approx(0.135, abs=0.005)


def test_glass_blur_takes_pixels_one_after_the_other() -> None:
    """The loop of the published code, with its assignment that copies, beside what is found by doubling steps."""
    side, reach = 13, 2
    offset = rng().integers(-reach, reach, (2, (side - 2 * reach) ** 2))
    shown, number = np.arange(side * side).reshape(side, side), 0
    draws = offset.reshape(2, side - 2 * reach, side - 2 * reach)
    for row in range(side - reach, reach, -1):
        for column in range(side - reach, reach, -1):
            dy, dx = draws[:, row - reach - 1, column - reach - 1]
            shown[row, column] = shown[row + dy, column + dx]
            number += 1
    assert number == draws[0].size
    assert np.array_equal(blur.glass_sources(side, reach, rng()), shown.reshape(-1))


def test_the_disc_of_defocus() -> None:
    kernel = blur.disc(3, 0.1)  # softened by next to nothing
    inside = [(y, x) for y in range(-8, 9) for x in range(-8, 9) if y * y + x * x <= 9]
    assert len(inside) == 29
    assert kernel[8, 8] == pytest.approx(1 / 29)
    assert np.count_nonzero(kernel > 1e-9) == 29
    assert blur.disc(10, 0.5).shape == (21, 21)
    white = np.full((40, 40, 3), 255, np.uint8)
    assert (blur.defocus(white, (3, 0.1), rng()) == 255).all()


def test_motion_is_half_a_gaussian_along_a_line() -> None:
    dot = np.zeros((21, 21, 1))
    dot[10, 10] = 1
    streak = blur.streaked(dot, 4, 2.0, 0.0)[10, :, 0]  # looks to the right: the dot is smeared to the left
    weights = np.exp(-(np.arange(9) ** 2) / 8)
    assert np.allclose(streak[2:11], weights[::-1] / weights.sum())
    assert np.allclose(blur.streaked(dot, 4, 2.0, 45.0).sum(), 1)
    assert np.allclose(blur.streaked(np.ones((9, 9, 3)), 9, 3, -100.0), 1)


def test_zooming_keeps_size_and_middle() -> None:
    ramp = np.linspace(0, 1, 33)[None, :, None] * np.ones((33, 1, 3))
    large = blur.enlarged(ramp, 2.0)
    assert large.shape == ramp.shape
    assert large[16, 16, 0] == pytest.approx(0.5, abs=0.02)
    assert np.diff(large[16, :, 0]).mean() == pytest.approx(np.diff(ramp[16, :, 0]).mean() / 2, rel=0.1)
    assert np.array_equal(blur.enlarged(ramp, 1.0), ramp)


def test_the_height_map_of_fog() -> None:
    """Its first square and diamonds by hand, and its range."""
    drawn = rng()
    a, b, c = (100 * drawn.uniform(-100, 100) for _ in range(3))
    field = np.array([[0, a / 2 + b], [a / 2 + c, a]])  # an edge's neighbours: corner and middle, twice each
    field -= field.min()
    assert np.allclose(weather.plasma(2, 3.0, rng()), field / field.max())
    large = weather.plasma(64, 2.0, rng())
    assert (large.min(), large.max(), large.shape) == (0, 1, (64, 64))
    assert np.abs(np.diff(weather.plasma(64, 3.0, rng()), axis=0)).mean() < np.abs(np.diff(large, axis=0)).mean()


def test_the_height_map_point_by_point() -> None:
    """In loops over points, on a grid that goes on at its edges."""
    size, step, reach, drawn = 8, 8, 100.0, rng()
    field = np.zeros((size, size))
    while step >= 2:
        half, points = step // 2, [(y, x) for y in range(0, size, step) for x in range(0, size, step)]
        for move, near in (
            ((half, half), ((0, 0), (step, 0), (0, step), (step, step))),
            ((0, half), ((0, 0), (0, step), (half, half), (-half, half))),
            ((half, 0), ((0, 0), (step, 0), (half, half), (half, -half))),
        ):
            for (y, x), number in zip(points, drawn.uniform(-reach, reach, len(points)), strict=True):
                mean = sum(field[(y + dy) % size, (x + dx) % size] for dy, dx in near) / 4
                field[y + move[0], x + move[1]] = mean + reach * number
        step, reach = half, reach / 1.5
    field -= field.min()
    assert np.allclose(weather.plasma(8, 1.5, rng()), field / field.max())


def test_no_two_corruptions_draw_the_same() -> None:
    drawn = {Corruption(name, severity, 32).values(0, np.arange(1))[0] for name in NAMES for severity in SEVERITIES}
    assert len(drawn) == 75


def test_brightness_adds_to_the_value_of_hsv() -> None:
    image = picture(16)
    lighter = weather.brightness(image, 0.3, rng())
    for pixel, found in zip(image.reshape(-1, 3)[::7], lighter.reshape(-1, 3)[::7], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))) * 255
        assert np.abs(found - expected).max() <= 1


def test_contrast_goes_towards_the_mean() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200
    assert digital.contrast(image, 0.5, rng())[:, 0, 0].tolist() == [150, 50]


def test_an_elastic_map_that_moves_nothing_changes_nothing() -> None:
    image = picture(24)
    assert np.array_equal(digital.elastic(image, (0, 0, 0), rng()), image)
    assert not np.array_equal(digital.elastic(image, (3.2, 0.96, 0), rng()), image)
    assert not np.array_equal(digital.elastic(image, (0, 0, 2), rng()), image)


def test_published_tables_have_five_severities_of_every_corruption() -> None:
    for table in (IMAGENET, CIFAR):
        assert list(table) == list(NAMES)
        assert {len(row) for row in table.values()} == {5}


def test_names_and_severities() -> None:
    assert checked_names(["snow", "gaussian_noise", "snow"]) == ("gaussian_noise", "snow")
    assert checked_names(["all"]) == NAMES
    with pytest.raises(RecipeError, match=r"'gausian_noise' is none; the nearest is gaussian_noise.*\n.*'fogg'|'fogg'"):
        checked_names(["gausian_noise", "fogg"])
    with pytest.raises(RecipeError, match="none is named"):
        checked_names([])
    assert checked_severities([3, 1, 3]) == (1, 3)
    for wrong in ([], [0], [6]):
        with pytest.raises(RecipeError, match="they are 1 to 5"):
            checked_severities(wrong)


def test_means_of_errors() -> None:
    errors = {Corruption(name, s, 32): 0.1 * s for name in ("fog", "frost") for s in (1, 3)}
    table = error_table(errors, 0.05, 10)
    assert table["errors"]["fog"] == pytest.approx({"1": 0.1, "3": 0.3})
    assert table["mean_errors"] == pytest.approx({"fog": 0.2, "frost (procedural)": 0.2})
    assert table["parameters"] == "CIFAR-C (32 px)"
    assert (table["mce"], table["mce_alexnet"]) == (pytest.approx(0.2), None)


def test_alexnet_is_as_good_as_itself() -> None:
    errors = {Corruption(name, s, 224): ALEXNET[name] for name in NAMES for s in SEVERITIES}
    assert error_table(errors, 0.435, 1000)["mce_alexnet"] == pytest.approx(1)
    assert error_table(errors, 0.435, 200)["mce_alexnet"] is None
    assert error_table(errors, 0.435, 1000)["mce"] == pytest.approx(sum(ALEXNET.values()) / 15)

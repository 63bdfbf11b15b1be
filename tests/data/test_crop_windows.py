import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import v2

from fastaug.data.crop_windows import Windows, center, random_resized, whole
from fastaug.seeding import Key, Stream

KEY = Key(7, 0, Stream.WINDOW)
SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]
sides = st.integers(1, 700)


def drawn(count: int, height: int, width: int, scale: list[float] = SCALE, ratio: list[float] = RATIO) -> Windows:
    shape = np.full(count, height), np.full(count, width)
    return random_resized(KEY, np.arange(count), *shape, 224, scale, ratio)


def torchvision_windows(count: int, height: int, width: int, scale: list[float], ratio: list[float]) -> np.ndarray:
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(224, scale=scale, ratio=ratio), torch.empty(3, height, width)
    params = [transform.make_params([image]) for _ in range(count)]
    return np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])


@given(height=sides, width=sides, low=st.floats(0.001, 1), ratios=st.tuples(st.floats(0.01, 9), st.floats(0.01, 9)))
def test_windows_lie_inside_the_image(height: int, width: int, low: float, ratios: tuple[float, float]) -> None:
    windows = drawn(20, height, width, [low, 1.0], sorted(ratios))
    top, left, tall, wide = windows.window.T
    assert min(top.min(), left.min()) >= 0
    assert min(tall.min(), wide.min()) >= 1
    assert (top + tall).max() <= height
    assert (left + wide).max() <= width
    assert (windows.size == 224).all()
    assert not windows.offset.any()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, SCALE, RATIO),
        (500, 333, [0.35, 1.0], RATIO),
        (256, 256, [0.5, 0.6], [0.5, 2.0]),
        (60, 400, SCALE, RATIO),
    ],
)
def test_windows_are_distributed_as_torchvisions(
    height: int, width: int, scale: list[float], ratio: list[float]
) -> None:
    ours = drawn(6000, height, width, scale, ratio).window
    theirs = torchvision_windows(6000, height, width, scale, ratio)
    for name, figure in {
        "area": lambda w: w[:, 2] * w[:, 3],
        "aspect": lambda w: w[:, 3] / w[:, 2],
        "top": lambda w: w[:, 0],
        "left": lambda w: w[:, 1],
        "bottom": lambda w: w[:, 0] + w[:, 2],
    }.items():
        assert ks_2samp(figure(ours), figure(theirs)).pvalue > 1e-4, name


def test_where_every_window_fits_area_is_uniform_and_aspect_log_uniform() -> None:
    window = drawn(20_000, 2000, 2000, [0.1, 0.5], [0.5, 2.0]).window.astype(float)
    area, aspect = window[:, 2] * window[:, 3] / 2000**2, window[:, 3] / window[:, 2]
    assert kstest((area - 0.1) / 0.4, "uniform").pvalue > 1e-4
    assert kstest(np.log(aspect) / np.log(4) + 0.5, "uniform").pvalue > 1e-4
    place = window[:, 0] / (2000 - window[:, 2])
    assert kstest(place, "uniform").pvalue > 1e-4


def test_first_and_last_place_are_reached_equally_often() -> None:
    window = drawn(6000, 10, 12, [1.0, 1.0], [1.2, 1.2]).window  # the whole image, one place only
    assert (window == [0, 0, 10, 12]).all()
    left = drawn(6000, 10, 12, [100 / 120, 100 / 120], [1.0, 1.0]).window[:, 1]  # 10 x 10: left is 0, 1 or 2
    counts = np.bincount(left, minlength=3)
    assert len(counts) == 3
    assert abs(counts - 2000).max() < 200


def test_a_window_depends_on_key_and_id_alone() -> None:
    ids, heights, widths = np.arange(100), np.arange(100) + 200, np.arange(100)[::-1] + 150
    first = random_resized(KEY, ids, heights, widths, 224, SCALE, RATIO).window
    some = np.array([90, 3, 41])
    again = random_resized(KEY, some, heights[some], widths[some], 224, SCALE, RATIO).window
    np.testing.assert_array_equal(again, first[some])
    for other in (KEY._replace(seed=8), KEY._replace(epoch=1)):
        assert (random_resized(other, ids, heights, widths, 224, SCALE, RATIO).window != first).any(axis=1).mean() > 0.9


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 300), (300, 1), (20, 900)])
def test_without_a_fitting_window_the_middle_is_taken_as_torchvision_does(height: int, width: int) -> None:
    ours = drawn(50, height, width, [0.9, 1.0]).window
    theirs = torchvision_windows(50, height, width, [0.9, 1.0], RATIO)
    assert len(np.unique(ours, axis=0)) == 1
    np.testing.assert_array_equal(ours, theirs)


def test_a_window_never_shrinks_to_nothing() -> None:
    for height, width, ratio in [(1, 100, [0.1, 0.2]), (100, 1, [5.0, 9.0])]:
        assert drawn(20, height, width, SCALE, ratio).window[:, 2:].min() == 1


@given(height=sides, width=sides, side=st.integers(1, 300), crop_pct=st.sampled_from([0.8, 0.875, 0.9, 0.95, 1.0]))
@settings(max_examples=300)
def test_center_is_the_geometry_of_torchvision(height: int, width: int, side: int, crop_pct: float) -> None:
    windows = center(np.array([height]), np.array([width]), side, crop_pct)
    assert windows.window.tolist() == [[0, 0, height, width]]
    resize = v2.Resize(int(side / crop_pct))
    tall, wide = resize(torch.empty(3, height, width, device="meta")).shape[1:]
    assert windows.size.tolist() == [[tall, wide]]
    # CenterCrop's offsets, read off an image that holds its own coordinates.
    rows = torch.arange(tall).view(1, tall, 1).expand(1, tall, side)
    columns = torch.arange(wide).view(1, 1, wide).expand(1, side, wide)
    crop = v2.CenterCrop(side)
    assert windows.offset.tolist() == [[int(crop(rows)[0, 0, 0]), int(crop(columns)[0, 0, 0])]]
    assert (windows.offset + side <= windows.size).all()


def test_center_takes_each_image_by_itself() -> None:
    heights, widths = np.array([100, 300, 77], dtype=np.int32), np.array([200, 100, 77], dtype=np.int32)
    together = center(heights, widths, 64, 0.875)
    for i in range(3):
        alone = center(heights[i : i + 1], widths[i : i + 1], 64, 0.875)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], other[i])
    assert together.size.tolist() == [[73, 146], [219, 73], [73, 73]]


def test_an_image_smaller_than_the_crop_is_enlarged() -> None:
    windows = center(np.array([8]), np.array([12]), 224, 0.875)
    assert windows.size.tolist() == [[256, 384]]
    assert windows.offset.tolist() == [[16, 80]]


def test_whole_keeps_everything() -> None:
    windows = whole(np.array([30, 7], dtype=np.int32), np.array([20, 900], dtype=np.int32), 28)
    assert windows.window.tolist() == [[0, 0, 30, 20], [0, 0, 7, 900]]
    assert windows.window.dtype == np.int64
    assert windows.size.tolist() == [[28, 28]] * 2
    assert not windows.offset.any()

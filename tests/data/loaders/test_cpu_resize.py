"""The resizer against torchvision, bit by bit; its threads; and that narrowed windows give the same cuts."""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fastaug.data.crop_windows import Windows, center, whole
from fastaug.data.loaders.cpu_resize import Resizer, needed

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
SIDE = 32


@pytest.fixture(params=MODES)
def interpolation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def images(photos: list[np.ndarray]) -> list[np.ndarray]:
    """Seven pictures from 20 to 400 pixels a side, one of them of the size that is asked for."""
    draw = np.random.default_rng(0)
    sizes = [(20, 24), (SIDE, SIDE), (33, 31), (64, 64), (150, 40), (90, 400), (400, 300)]
    corners = [(draw.integers(0, 428 - h), draw.integers(0, 641 - w)) for h, w in sizes]
    return [
        photos[i % 2][y : y + h, x : x + w].copy()
        for i, ((h, w), (y, x)) in enumerate(zip(sizes, corners, strict=True))
    ]


def sizes_of(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([image.shape[0] for image in images]), np.array([image.shape[1] for image in images])


def by_torchvision(image: np.ndarray, windows: Windows, i: int, interpolation: str, side: int) -> torch.Tensor:
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    resized = F.resize(tensor, windows.size[i].tolist(), interpolation=MODES[interpolation], antialias=True)
    top, left = windows.offset[i].tolist()
    return resized[:, top : top + side, left : left + side].permute(1, 2, 0)


def cut(images: Sequence[np.ndarray], windows: Windows) -> list[np.ndarray]:
    boxes = windows.window.tolist()
    return [
        image[top : top + height, left : left + width]
        for image, (top, left, height, width) in zip(images, boxes, strict=True)
    ]


@pytest.mark.parametrize("kind", ["whole", "center"])
def test_pixels_are_torchvision_s_to_the_bit(images: list[np.ndarray], kind: str, interpolation: str) -> None:
    sizes = sizes_of(images)
    windows = whole(*sizes, SIDE) if kind == "whole" else center(*sizes, SIDE, 0.6)
    batch = Resizer(2, interpolation).batch(images, windows, SIDE)
    assert (batch.shape, batch.dtype) == ((len(images), SIDE, SIDE, 3), torch.uint8)
    assert batch.is_contiguous()
    for i, image in enumerate(images):
        assert torch.equal(batch[i], by_torchvision(image, windows, i, interpolation, SIDE)), image.shape


def test_the_number_of_threads_and_the_batch_change_nothing(images: list[np.ndarray], interpolation: str) -> None:
    windows = whole(*sizes_of(images), SIDE)
    first = Resizer(1, interpolation).batch(images, windows, SIDE)
    for threads in (2, 4, 16):
        assert torch.equal(Resizer(threads, interpolation).batch(images, windows, SIDE), first)
    resizer = Resizer(2, interpolation)
    alone = [resizer.batch([image], Windows(*(w[i : i + 1] for w in windows)), SIDE) for i, image in enumerate(images)]
    assert torch.equal(torch.cat(alone), first)


def test_any_form_of_image_is_taken(images: list[np.ndarray]) -> None:
    windows = whole(*sizes_of(images), SIDE)
    resizer = Resizer(2, "bilinear")
    expected = resizer.batch(images, windows, SIDE)
    framed = [np.pad(image, ((3, 3), (5, 5), (0, 0)))[3:-3, 5:-5] for image in images]
    fixed = [image.copy() for image in images]
    for image in fixed:
        image.flags.writeable = False
    tensors = [torch.from_numpy(image) for image in images]
    for form in (framed, fixed, tensors, [tensor[:] for tensor in tensors]):
        assert torch.equal(resizer.batch(form, windows, SIDE), expected)  # type: ignore[arg-type]


def test_no_images_give_an_empty_batch() -> None:
    assert Resizer(2, "bilinear").batch([], whole(np.empty(0), np.empty(0), SIDE), SIDE).shape == (0, SIDE, SIDE, 3)


def test_a_batch_stays_as_it_is_while_others_are_made(images: list[np.ndarray]) -> None:
    windows, resizer = whole(*sizes_of(images), SIDE), Resizer(2, "bilinear")
    first = resizer.batch(images, windows, SIDE)
    before = first.clone()
    for shift in range(20):
        resizer.batch([image + np.uint8(shift) for image in images], windows, SIDE)
    del resizer
    assert torch.equal(first, before)


class Failing(Sequence[np.ndarray]):
    """Images of which one cannot be had, each asked for in the thread that resizes it."""

    def __init__(self, images: list[np.ndarray], bad: int) -> None:
        self.images, self.bad = images, bad

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: Any) -> Any:
        if row == self.bad:
            raise OSError(f"image {row} is gone")
        return self.images[row]


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_what_goes_wrong_in_a_thread_reaches_the_caller(images: list[np.ndarray], bad: int) -> None:
    windows, resizer = whole(*sizes_of(images), SIDE), Resizer(2, "bilinear")
    with pytest.raises(OSError, match=f"image {bad} is gone"):
        resizer.batch(Failing(images, bad), windows, SIDE)
    assert resizer.batch(images, windows, SIDE).float().std() > 10  # and works on


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What ends, ends because nothing refers to it, not because the garbage collector came by."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
def test_threads_end_with_the_resizer(images: list[np.ndarray]) -> None:
    before = threads()
    resizer = Resizer(3, "bilinear")
    batch = resizer.start(images, whole(*sizes_of(images), SIDE), SIDE)
    del resizer  # even with a batch under way
    assert batch.result().float().std() > 10
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


# ---- narrowed windows ----

extents = st.integers(1, 3000)


@given(extents, extents, st.integers(1, 400), st.floats(0.2, 1), st.sampled_from(list(MODES)))
@settings(max_examples=300)
def test_a_narrowed_window_holds_all_that_the_cut_depends_on(height, width, side, crop_pct, interpolation):
    given_ = center(np.array([height]), np.array([width]), side, crop_pct)
    found = needed(given_, side, interpolation)
    window, size, offset = found.window[0], found.size[0], found.offset[0]
    assert (window[:2] >= 0).all()
    assert (window[:2] + window[2:] <= [height, width]).all()
    assert (offset >= 0).all()
    assert (offset + side <= size).all()
    scale = given_.window[0, 2:] / given_.size[0]
    # Both ends lie exactly where the ends of the output lie in the image.
    first = given_.offset[0] - offset
    assert (window[:2] * given_.size[0] == first * given_.window[0, 2:]).all()
    assert ((window[:2] + window[2:]) * given_.size[0] == (first + size) * given_.window[0, 2:]).all()
    # A filter at the middle of the first or last pixel of the cut ends inside, or at the end of the whole image.
    reach = (1 if interpolation == "bilinear" else 2) * np.maximum(scale, 1)
    middle = (given_.offset[0] + 0.5) * scale, (given_.offset[0] + side - 0.5) * scale
    assert (np.maximum(middle[0] - reach, 0) >= window[:2] - 1e-9).all()
    assert (np.minimum(middle[1] + reach, [height, width]) <= window[:2] + window[2:] + 1e-9).all()


def test_windows_that_are_cut_nowhere_stay(interpolation: str) -> None:
    windows = whole(np.array([375, 20]), np.array([500, 900]), SIDE)
    for found, given_ in zip(needed(windows, SIDE, interpolation), windows, strict=True):
        np.testing.assert_array_equal(found, given_)


@pytest.mark.parametrize(("side", "crop_pct"), [(224, 0.875), (64, 0.5), (40, 0.9), (300, 0.8)])
def test_evaluation_cuts_are_torchvision_s(
    photos: list[np.ndarray], interpolation: str, side: int, crop_pct: float
) -> None:
    draw = np.random.default_rng(1)
    images = [photos[i % 2][: draw.integers(100, 428), : draw.integers(100, 641)] for i in range(24)]
    images += [photos[0][:h, :w] for h, w in ((256, 320), (256, 256), (384, 512), (300, 400))]
    images = [image.copy() for image in images]
    windows = center(*sizes_of(images), side, crop_pct)
    narrow = needed(windows, side, interpolation)
    batch = Resizer(2, interpolation).batch(cut(images, narrow), narrow, side)
    for i, image in enumerate(images):
        wanted = by_torchvision(image, windows, i, interpolation, side)
        assert (batch[i].int() - wanted.int()).abs().max() <= 1, image.shape


def test_a_window_is_narrowed_where_input_and_output_meet(interpolation: str) -> None:
    windows = center(np.array([256, 512, 375]), np.array([256, 640, 500]), 224, 0.875)
    narrow = needed(windows, 224, interpolation)
    assert (narrow.window[0] <= [16, 16, 228, 228]).all()  # not resized at all
    assert (narrow.window[1, 2:] <= 460).all()  # by two
    assert (narrow.window[2] == [0, 0, 375, 500]).all()  # 375 to 256: they meet at the ends only


def test_a_window_narrowed_at_whole_pixels_gives_the_same_cut_to_the_bit(
    photos: list[np.ndarray], interpolation: str
) -> None:
    image = photos[0][:400, :600]
    windows = center(np.array([400]), np.array([600]), 100, 0.5)  # 400 to 200: two input pixels an output pixel
    narrow = needed(windows, 100, interpolation)
    assert (narrow.window[0, 2:] <= 210).all()
    resizer = Resizer(1, interpolation)
    whole_cut = resizer.batch([image], windows, 100)
    assert torch.equal(resizer.batch(cut([image], narrow), narrow, 100), whole_cut)

"""The graph's pixels: against torchvision, and that they depend on nothing but the window."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fastaug.seeding import Key, Stream
from fastaug.windows import Windows, center, random_resized, whole
from pipelines.folder import build_folder_pipeline

SIDE = 64
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ORIENTATION = 0x0112


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def decoded(
    files: list[Path],
    windows: Windows,
    *,
    batch: int | None = None,
    threads: int = 1,
    side: int = SIDE,
    **options: object,
) -> torch.Tensor:
    """uint8 [N, side, side, 3] of `files`, `batch` at a time."""
    paths = [np.frombuffer(os.fsencode(file), dtype=np.uint8) for file in files]
    batch = batch or len(files)
    inputs = []
    for start in range(0, len(files), batch):
        part = slice(start, start + batch)
        w, size, offset = windows.window[part], windows.size[part], windows.offset[part]
        ends = w[:, :2].astype(np.int32), w[:, 2:].astype(np.int32)
        inputs.append((paths[part], *ends, size.astype(np.float32), offset.astype(np.int32)))
    feed = iter(inputs)
    graph = {"interpolation": "bilinear", "exif": "ignore", **options}
    pipeline = build_folder_pipeline(
        lambda: next(feed), batch_size=batch, threads=threads, device_id=None, prefetch=2, side=side, **graph
    )
    return torch.cat([torch.from_dlpack(pipeline.run()[0].as_tensor()) for _ in inputs])


def expected(file: Path, windows: Windows, i: int, interpolation: str = "bilinear", side: int = SIDE) -> torch.Tensor:
    """The same by Pillow's decoder and torchvision's antialiased resize: uint8 [side, side, 3]."""
    image = torch.from_numpy(np.array(opened(file))).permute(2, 0, 1)
    top, left, tall, wide = windows.window[i].tolist()
    crop = F.crop(image, top, left, tall, wide)
    resized = F.resize(crop, windows.size[i].tolist(), interpolation=MODES[interpolation], antialias=True)
    y, x = windows.offset[i].tolist()
    return resized[:, y : y + side, x : x + side].permute(1, 2, 0)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean absolute difference in steps of 1/255."""
    assert one.shape == other.shape
    return (one.float() - other.float()).abs().mean().item()


@pytest.fixture
def files(jpeg_folder: Callable[..., Path]) -> list[Path]:
    return sorted(jpeg_folder(classes=2, images=8, sizes=(70, 220)).rglob("*.jpg"))


def sizes_of(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.array([opened(file).size for file in files])
    return sizes[:, 1], sizes[:, 0]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rrc", "center", "whole"])
def test_pixels_are_those_of_torchvision(files: list[Path], kind: str, interpolation: str) -> None:
    heights, widths = sizes_of(files)
    windows = {
        "rrc": random_resized(
            Key(3, 0, Stream.WINDOW), np.arange(len(files)), heights, widths, SIDE, [0.1, 1.0], [0.7, 1.4]
        ),
        "center": center(heights, widths, SIDE, 0.875),
        "whole": whole(heights, widths, SIDE),
    }[kind]
    images = decoded(files, windows, interpolation=interpolation)
    assert images.dtype == torch.uint8
    differences = [difference(image, expected(files[i], windows, i, interpolation)) for i, image in enumerate(images)]
    assert max(differences) < 3
    assert np.mean(differences) < 1


def test_the_comparison_notices_a_shift_of_one_pixel(files: list[Path]) -> None:
    heights, widths = sizes_of(files)
    windows = center(heights, widths, SIDE, 0.875)
    images = decoded(files, windows._replace(offset=windows.offset + 1))
    assert np.mean([difference(image, expected(files[i], windows, i)) for i, image in enumerate(images)]) > 3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_do_not_depend_on_batch_or_threads(files: list[Path], interpolation: str) -> None:
    heights, widths = sizes_of(files)
    windows = random_resized(Key(0, 0, Stream.WINDOW), np.arange(16), heights, widths, SIDE, [0.08, 1.0], [0.75, 1.33])
    first = decoded(files, windows, batch=16, threads=1, interpolation=interpolation)
    for batch, threads in [(16, 4), (8, 1), (8, 4), (1, 1), (5, 2)]:
        assert torch.equal(decoded(files, windows, batch=batch, threads=threads, interpolation=interpolation), first)


def test_a_window_of_the_file_s_own_size_is_copied_unchanged(tmp_path: Path, photos: list[np.ndarray]) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(photos[0][:200, :300]).save(file)
    window = Windows(np.array([[31, 50, SIDE, SIDE]]), np.array([[SIDE, SIDE]]), np.array([[0, 0]]))
    np.testing.assert_array_equal(decoded([file], window)[0], photos[0][31 : 31 + SIDE, 50 : 50 + SIDE])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_mode_of_png_becomes_rgb(tmp_path: Path, photos: list[np.ndarray], mode: str) -> None:
    file = tmp_path / "a.png"
    picture = Image.fromarray(photos[1][100:200, 200:300]).convert(mode)
    picture.save(file)
    windows = whole(np.array([100]), np.array([100]), 100)
    (image,) = decoded([file], windows, side=100)
    assert difference(image, torch.from_numpy(np.array(picture.convert("RGB")))) < 0.5


def test_grey_and_cmyk_jpeg(tmp_path: Path, photos: list[np.ndarray]) -> None:
    windows = whole(np.array([100]), np.array([100]), 100)
    grey, cmyk = tmp_path / "grey.jpg", tmp_path / "cmyk.jpg"
    Image.fromarray(photos[1][100:200, 200:300]).convert("L").save(grey, quality=95)
    Image.fromarray(photos[1][100:200, 200:300]).convert("CMYK").save(cmyk, quality=95)
    for file in (grey, cmyk):
        (image,) = decoded([file], windows, side=100)
        assert difference(image, expected(file, windows, 0, side=100)) < 3, file.name


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied_or_ignored(tmp_path: Path, photos: list[np.ndarray], orientation: int) -> None:
    file, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(photos[0][100:220, 100:300]).save(file, quality=95, exif=exif)
    stored = torch.from_numpy(np.array(opened(file)))
    with Image.open(file) as image_with_tag:
        turned = torch.from_numpy(np.array(ImageOps.exif_transpose(image_with_tag)))
    for option, picture in (("ignore", stored), ("apply", turned)):
        tall, wide = picture.shape[:2]
        # A window off the middle: it must be cut in the orientation that the index states.
        windows = Windows(np.array([[5, 9, SIDE, SIDE]]), np.array([[SIDE, SIDE]]), np.array([[0, 0]]))
        (image,) = decoded([file], windows, exif=option)
        assert difference(image, picture[5 : 5 + SIDE, 9 : 9 + SIDE]) < 1.5, (option, tall, wide)


def test_a_batch_that_is_held_is_not_overwritten(files: list[Path]) -> None:
    heights, widths = sizes_of(files)
    windows = center(heights, widths, SIDE, 0.875)
    w = windows.window
    paths = [np.frombuffer(os.fsencode(file), dtype=np.uint8) for file in files]

    def inputs(part: slice) -> tuple[object, ...]:
        ends = w[part, :2].astype(np.int32), w[part, 2:].astype(np.int32)
        return paths[part], *ends, windows.size[part].astype(np.float32), windows.offset[part].astype(np.int32)

    feed = iter([inputs(slice(0, 4))] + [inputs(slice(4 * (i % 3) + 4, 4 * (i % 3) + 8)) for i in range(30)])
    pipeline = build_folder_pipeline(
        lambda: next(feed),
        batch_size=4,
        threads=1,
        device_id=None,
        prefetch=2,
        side=SIDE,
        interpolation="bilinear",
        exif="ignore",
    )
    held = torch.from_dlpack(pipeline.run()[0].as_tensor())
    before = held.clone()
    for _ in range(25):
        pipeline.run()
    assert torch.equal(held, before)
    del pipeline
    assert torch.equal(held, before)

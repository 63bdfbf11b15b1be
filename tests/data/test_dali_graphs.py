"""Pixels of the graph and its resizer: against torchvision, and that they depend on nothing but the window."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import backend
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from fastaug.data.crop_windows import Windows, center, random_resized, whole
from fastaug.data.dali_graphs.folder import build_folder_pipeline, folder_graph
from fastaug.data.loaders.cpu_resize import Resizer
from fastaug.seeding import Key, Stream

SIDE = 64
MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
ORIENTATION = 0x0112


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def inputs_of(files: list[Path], windows: Windows, part: slice) -> tuple[object, ...]:
    """What the graph is fed for some of the files."""
    data = [np.fromfile(file, dtype=np.uint8) for file in files[part]]
    return data, windows.window[part, :2].astype(np.int32), windows.window[part, 2:].astype(np.int32)


def decoded(
    files: list[Path],
    windows: Windows,
    *,
    batch: int | None = None,
    threads: int = 1,
    side: int = SIDE,
    interpolation: str = "bilinear",
    exif: str = "ignore",
) -> torch.Tensor:
    """uint8 [N, side, side, 3] of `files`, `batch` at a time."""
    batch = batch or len(files)
    parts = [slice(start, start + batch) for start in range(0, len(files), batch)]
    feed = iter([inputs_of(files, windows, part) for part in parts])
    pipeline = build_folder_pipeline(
        lambda: next(feed), batch_size=batch, threads=threads, device_id=None, prefetch=2, side=side,
        interpolation=interpolation, exif=exif,
    )  # fmt: skip
    resizer = Resizer(threads, interpolation)
    images = []
    for part in parts:
        (output,) = pipeline.run()
        cuts = Windows(*(values[part] for values in windows))
        images.append(resizer.batch([np.asarray(output[i]) for i in range(len(output))], cuts, side))
    return torch.cat(images)


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


def some_windows(kind: str, files: list[Path]) -> Windows:
    heights, widths = sizes_of(files)
    if kind == "rrc":
        key, ids = Key(3, 0, Stream.WINDOW), np.arange(len(files))
        return random_resized(key, ids, heights, widths, SIDE, [0.1, 1.0], [0.7, 1.4])
    return center(heights, widths, SIDE, 0.875) if kind == "center" else whole(heights, widths, SIDE)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rrc", "center", "whole"])
def test_pixels_are_those_of_torchvision(files: list[Path], kind: str, interpolation: str) -> None:
    windows = some_windows(kind, files)
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


def test_what_the_graph_was_fed_lives_until_it_has_been_read_and_no_longer(files: list[Path]) -> None:
    """Nobody else holds the arrays: where DALI did not, it would read what is written over them here."""
    windows = whole(*sizes_of(files[:4]), SIDE)
    fed: list[weakref.ref[Any]] = []

    def source() -> tuple[object, ...]:
        data, anchor, extent = inputs_of(files, windows, slice(4))
        fed.extend(map(weakref.ref, [*data, anchor, extent]))  # type: ignore[call-overload]
        return data, anchor, extent

    pipeline = build_folder_pipeline(
        source, batch_size=4, threads=1, device_id=None, prefetch=2, side=SIDE,
        interpolation="bilinear", exif="ignore",
    )  # fmt: skip
    lengths = [file.stat().st_size for file in files[:4]]
    wanted = [np.asarray(image) for image in map(opened, files[:4])]
    for _ in range(20):
        pipeline.schedule_run()
        over = [np.zeros(length, dtype=np.uint8) for length in lengths * 8]
        (output,) = pipeline.share_outputs()
        for i, image in enumerate(wanted):
            np.testing.assert_allclose(np.asarray(output[i]).astype(int), image, atol=1)
        pipeline.release_outputs()
    del pipeline, over
    assert not any(one() is not None for one in fed)


def test_decoded_windows_that_are_held_are_not_overwritten(files: list[Path]) -> None:
    windows = center(*sizes_of(files), SIDE, 0.875)
    feed = (inputs_of(files, windows, slice(4 * (i % 4), 4 * (i % 4) + 4)) for i in range(31))
    pipeline = build_folder_pipeline(
        lambda: next(feed), batch_size=4, threads=1, device_id=None, prefetch=2, side=SIDE,
        interpolation="bilinear", exif="ignore",
    )  # fmt: skip
    (output,) = pipeline.run()
    held = [np.asarray(output[i]) for i in range(4)]
    assert not any(image.flags.owndata for image in held)  # no copies
    before = [image.copy() for image in held]
    del output
    for _ in range(25):
        pipeline.run()
    del pipeline
    for image, copy in zip(held, before, strict=True):
        np.testing.assert_array_equal(image, copy)


def test_the_graph_for_a_gpu_has_operators_that_exist_there() -> None:
    pipeline = folder_graph(
        lambda: (), device="gpu", side=SIDE, interpolation="bicubic", exif="apply",
        largest=(500, 500), batch_size=4, num_threads=1, device_id=0, prefetch_queue_depth=2, exec_dynamic=True,
    )  # fmt: skip
    pipeline._build_graph()  # all that can be done without a GPU
    known = {
        "cpu": {*backend.RegisteredCPUOps()},
        "gpu": {*backend.RegisteredGPUOps()},
        "mixed": {*backend.RegisteredMixedOps()},
    }
    used = [(operator._op.schema.Name(), operator._op.device) for operator in pipeline._ops]
    assert all(name in known[device] for name, device in used)
    after = [pair for pair in used if pair[1] != "cpu"]
    assert after == [("decoders__Image", "mixed"), ("Slice", "gpu"), ("Resize", "gpu"), ("Slice", "gpu")]


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["rrc", "center"])
def test_pixels_of_a_gpu_are_those_of_torchvision(files: list[Path], kind: str, interpolation: str) -> None:
    windows = some_windows(kind, files)
    feed = inputs_of(files, windows, slice(None)), windows.size.astype(np.float32), windows.offset.astype(np.int32)
    pipeline = build_folder_pipeline(
        lambda: (*feed[0], *feed[1:]), batch_size=len(files), threads=1, device_id=0, prefetch=1, side=SIDE,
        interpolation=interpolation, exif="ignore", largest=(220, 220),
    )  # fmt: skip
    images = torch.from_dlpack(pipeline.run()[0].as_tensor()).cpu()
    differences = [difference(image, expected(files[i], windows, i, interpolation)) for i, image in enumerate(images)]
    assert max(differences) < 3

"""Grey batches: what Pillow's mode "L" gives, and every level of an image without colour as it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastaug.data.build import DataParts, build_loader
from fastaug.data.index import load_index
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loaders.grey import grey
from fastaug.data.sampler import Request
from fastaug.data.splits import make_splits


def test_luma_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(grey(torch.from_numpy(pixels))[..., 0].numpy(), expected)


def test_an_image_without_colour_stays_as_it_is() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert grey(levels[:, None].expand(-1, 3))[:, 0].equal(levels)


def test_the_loader_of_one_channel_is_the_grey_of_the_one_of_three(jpeg_folder: Callable[..., Path]) -> None:
    index = load_index(jpeg_folder(splits=("train", "val")), threads=1)
    parts = DataParts(index.classes, make_splits(index, seed=0), index)
    loading, request = Loading(torch.device("cpu"), 16), Request(1, parts.splits.train[:9])
    for crop, resident in (({"kind": "rrc"}, False), ({"kind": "whole"}, True)):
        one, three = (
            build_loader(parts, parts.splits.train, Crop(side=24, channels=n, **crop), loading, resident=resident)
            for n in (1, 3)
        )
        (a,), (b,) = one.batches([request]), three.batches([request])
        assert a.images.shape == (9, 24, 24, 1)
        assert a.images.equal(grey(b.images))
        assert all(x.equal(y) for x, y in zip(a[1:], b[1:], strict=True))

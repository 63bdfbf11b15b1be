"""Folders of made-up photographs of any size, for measurements that need files but no content."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def write_photo(path: Path, seed: int, width: int = 500, height: int = 375, quality: int = 90) -> None:
    """A JPEG of soft blotches under grain, about as many bytes as a photograph has."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    blotches = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = draw.normal(0, 12, (height, width, 1)).astype(np.float32)
    Image.fromarray((blotches + grain).clip(0, 255).astype(np.uint8)).save(path, quality=quality)


def make_photo_folder(root: Path, files: int, classes: int, distinct: int = 256) -> Path:
    """`files` images dealt to `classes` class folders below a new folder `root`.

    Only `distinct` of them have bytes of their own, the others are hard links: a large folder is made in seconds.
    """
    originals = root / ".originals"  # a leading dot: no class
    originals.mkdir(parents=True)
    distinct = min(distinct, files)
    for number in range(distinct):
        write_photo(originals / f"{number}.jpg", number)
    sources = [os.fspath(originals / f"{number}.jpg") for number in range(distinct)]
    for label in range(classes):
        folder = os.fspath(root / f"class{label:04d}")
        os.mkdir(folder)
        for number in range(label, files, classes):  # a folder after the other: the file system is quickest so
            os.link(sources[number % distinct], f"{folder}/{number:08d}.jpg")
    return root

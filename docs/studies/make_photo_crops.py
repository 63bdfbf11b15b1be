"""Cuts scikit-image's own photographs into a set to learn from: a class is a photograph, an image a square of it.

Training squares come from the left half, test squares from the right half, at least a side apart, so that no pixel is
in both. Writes OUT/{train,test}/CLASS/NNNN.png; downloads nothing. The same arguments give the same files.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data

PHOTOS = (  # in the wheel, no download
    *("astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "page", "retina", "rocket", "text"),
)


def photograph(name: str) -> npt.NDArray[np.uint8]:
    """A photograph as uint8 [H,W,3]."""
    pixels = getattr(data, name)()
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels[..., :3]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make; must not exist")
    parser.add_argument("--side", type=int, default=32, help="pixels of a square (default 32)")
    parser.add_argument("--train", type=int, default=60, help="training squares of a class (default 60)")
    parser.add_argument("--test", type=int, default=60, help="test squares of a class (default 60)")
    args = parser.parse_args()
    draw = np.random.default_rng(0)
    for name in PHOTOS:
        pixels = photograph(name)
        height, width = pixels.shape[:2]
        halves = {"train": (0, (width - args.side) // 2), "test": ((width + args.side) // 2, width)}
        for split, (left, right) in halves.items():
            folder = args.out / split / name
            folder.mkdir(parents=True)
            for number in range(getattr(args, split)):
                y = draw.integers(0, height - args.side, endpoint=True)
                x = draw.integers(left, right - args.side, endpoint=True)
                Image.fromarray(pixels[y : y + args.side, x : x + args.side]).save(folder / f"{number:04d}.png")
    print(f"{len(PHOTOS)} classes, {args.train} training and {args.test} test images each, in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

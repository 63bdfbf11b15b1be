"""Writes scikit-learn's handwritten digits as a folder of classes, for docs/studies/uneven_digits.yaml.

python docs/studies/make_digits.py data/digits      (needs scikit-learn, which is in fastaug[test])

1,797 grey images of 8 x 8 pixels, about 180 of each digit.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    """Writes folder/<digit>/<number>.png."""
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(image.reshape(8, 8) * (255 / 16)).astype(np.uint8)  # 17 levels
        Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

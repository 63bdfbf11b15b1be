"""Folders of images of n channels in every form that is read."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

FORMS = ("pages.tif", "samples.tiff", "planes.tif", "deep.npy", "fortran.npy")


def write(file: Path, form: str, pixels: npt.NDArray[np.uint8]) -> Path:
    """Writes uint8 [H, W, C] in a form whose name begins as one of FORMS; "deep" and "samples" in 16 bits."""
    deep = pixels.astype(np.uint16) * 257
    grey = {"photometric": "minisblack"}
    if form.startswith("pages"):
        tifffile.imwrite(file, pixels.transpose(2, 0, 1), **grey)
    elif form.startswith("samples"):
        tifffile.imwrite(file, deep, planarconfig="contig", **grey)
    elif form.startswith("planes"):
        tifffile.imwrite(file, pixels.transpose(2, 0, 1), planarconfig="separate", compression="zlib", **grey)
    else:
        np.save(file, deep if form.startswith("deep") else np.asfortranarray(pixels))
    return file


def channel_folder(root: Path, channels: int, images: int = 5) -> Path:
    """train/ and val/ of two classes, which the last channel tells apart; `images` of each, in turn of all FORMS."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                height, width = rng.integers(20, 40, 2)
                pixels = rng.integers(0, 100, (height, width, channels), np.uint8)
                pixels[..., -1] += np.uint8(100 * label)
                form = FORMS[number % len(FORMS)]
                write(folder / f"{number}-{form}", form, pixels)
    return root

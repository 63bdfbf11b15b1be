"""Whether a loader does the work it is timed for: right pixels, right labels, every image once.

With a window that is always the whole image, the crop of training is a fixed, antialiased resize. Loaders deliver in
orders of their own, so each image is matched with the reference image whose thumbnail is nearest.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.peers.job import Stream

TOLERANCE = 3.0  # of 255, mean over an image
THUMBNAIL = 8

Pixels = npt.NDArray[np.uint8]


def write_reference(folder: Path, side: int, file: Path) -> None:
    """torchvision's antialiased resize of every file of a folder of class folders, with its label."""
    import torch
    from PIL import Image
    from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

    from benchmarks.peers.forms import labelled_files

    files = labelled_files(folder)
    decoded = (torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path, _ in files)
    images = torch.stack([F.resize(image, [side, side], antialias=True) for image in decoded]).permute(0, 2, 3, 1)
    np.savez(file, images=images.numpy(), labels=np.array([label for _, label in files]))


def thumbnails(images: Pixels) -> npt.NDArray[np.float32]:
    """Block means [N, THUMBNAIL * THUMBNAIL * 3] of images [N,S,S,3]."""
    side = images.shape[1] // THUMBNAIL * THUMBNAIL
    blocks = images[:, :side, :side].reshape(len(images), THUMBNAIL, side // THUMBNAIL, THUMBNAIL, -1, 3)
    return blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(images), -1)


def compared(images: Pixels, labels: npt.NDArray[Any], reference: Pixels, right: npt.NDArray[Any]) -> dict[str, float]:
    """`mean_difference` of the worst image; numbers of images delivered, different ones met, and wrong labels."""
    far = ((thumbnails(images)[:, None] - thumbnails(reference)[None]) ** 2).sum(axis=2)
    nearest = far.argmin(axis=1)
    differences = [np.abs(a.astype(np.int16) - reference[j]).mean() for a, j in zip(images, nearest, strict=True)]
    wrong = int((labels != right[nearest]).sum())
    met = len(np.unique(nearest))
    return {"mean_difference": float(max(differences)), "images": len(images), "met": met, "wrong_labels": wrong}


def check(stream: Stream, file: Path) -> dict[str, Any]:
    """One pass of a loader against the reference of `write_reference`; `gates` says what held."""
    # Copies: a loader may use its buffers again.
    parts = [(np.asarray(images).copy(), np.asarray(labels).copy(), ids) for images, labels, ids in stream]
    images, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}, not uint8")
    if images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    reference = np.load(file)
    found = compared(images, labels, reference["images"], reference["labels"])
    gates = {
        "pixels": found["mean_difference"] <= TOLERANCE,
        "labels": found["wrong_labels"] == 0,
        "count": found["images"] == found["met"] == len(reference["labels"]),
    }
    if parts[0][2] is not None:
        ids = np.concatenate([np.asarray(part[2]) for part in parts])
        gates["ids"] = len(np.unique(ids)) == len(ids) == found["images"]
    return {**found, "gates": gates}

"""Images of n channels a second of processor time, by form of file, and what the op takes for a batch of them.

Files hold noise of uint16, 13 channels of 64 x 64 pixels, as EuroSAT has them. Forms take turns; medians of rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastaug.data.build import DataParts, build_loader
from fastaug.data.index import load_index
from fastaug.data.listing import Listing
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.sampler import Request
from fastaug.data.splits import make_splits
from fastaug.ops.crop_mix import Sampling, crop_mix, sample_crop_mix
from fastaug.seeding import Key

FORMS = ("pages", "samples", "deflate", "npy")
BATCH = 64


def write_folder(root: Path, form: str, images: int, channels: int, side: int) -> None:
    """Two classes of noise in one form of file."""
    import tifffile

    rng = np.random.default_rng(0)
    grey: dict[str, Any] = {"photometric": "minisblack"}
    for number in range(images):
        folder = root / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 2**16, (side, side, channels), np.uint16)
        if form == "npy":
            np.save(folder / f"{number}.npy", pixels)
        elif form == "pages":
            tifffile.imwrite(folder / f"{number}.tif", pixels.transpose(2, 0, 1), **grey)
        else:
            compression = "zlib" if form == "deflate" else None
            tifffile.imwrite(folder / f"{number}.tif", pixels, planarconfig="contig", compression=compression, **grey)


def per_second(parts: DataParts, crop: Crop, epoch: int) -> float:
    """Images a second of processor time of one epoch, in batches of BATCH."""
    ids = parts.splits.train
    requests = [Request(epoch, ids[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
    loader = build_loader(parts, ids, crop, Loading(torch.device("cpu"), BATCH))
    began = time.process_time()
    images = sum(len(batch.ids) for batch in loader.batches(requests))
    return images / (time.process_time() - began)


def op_milliseconds(channels: int, side: int) -> float:
    """Processor time of the op, soft crop and CutMix, for a batch of BATCH."""
    mean, std = [0.5] * channels, [0.25] * channels
    images = torch.randint(0, 256, (BATCH, side, side, channels), dtype=torch.uint8)
    params = sample_crop_mix(
        Key(0, 0, 0), range(BATCH), (side, side), Sampling(sigma=0.3, cutmix=1.0), mean=mean, std=std
    )
    times = []
    for _ in range(6):
        began = time.process_time()
        crop_mix(images, torch.zeros(BATCH, dtype=torch.int64), params, classes=2, mean=mean, std=std)
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times[1:])


def main(argv: list[str] | None = None) -> None:
    """Prints a line a form."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.channels", description=__doc__)
    parser.add_argument("--channels", type=int, default=13)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    crop = Crop("rrc", given.side, channels=given.channels)
    with tempfile.TemporaryDirectory() as made:
        parts = {}
        for form in FORMS:
            write_folder(Path(made) / form, form, given.images, given.channels, given.side)
            index = load_index(Path(made) / form, cache=Path(made) / "cache", listing=Listing(channels=given.channels))
            parts[form] = DataParts(index.classes, make_splits(index, seed=0, test=0.1), index)
        found: dict[str, list[float]] = {form: [] for form in FORMS}
        for number in range(given.rounds):
            for form in FORMS:
                found[form].append(per_second(parts[form], crop, number))
    for form, rates in found.items():
        print(f"{form:8} {statistics.median(rates):7.0f} images a core-second ({min(rates):.0f} to {max(rates):.0f})")
    print(f"op       {op_milliseconds(given.channels, given.side):7.1f} ms a batch of {BATCH}")


if __name__ == "__main__":
    main()

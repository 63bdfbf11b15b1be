"""Packed sets beside prepared shards: the same JPEG files as a folder, as shards, WebDataset tars, TFRecords and Arrow.

One process and one thread of DALI; the forms take turns, each round in another order, on the ids of an epoch in an
order of its own. Figures are images a second of processor time (all threads), medians of the rounds with their range,
and each form's ratio to the shards, as the median of the rounds' ratios. The files are in memory after the first
reading: what a slow disk adds is not in these figures. Also the processor time of making each index.

    python -m benchmarks.packed --images 512 --rounds 7
"""

import argparse
import json
import statistics
import struct
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.photo_folder import make_photo_folder
from fastaug.console import Console
from fastaug.data.build import DataParts, build_loader, find_index, find_root
from fastaug.data.index import Index, load_index
from fastaug.data.loaders.base import Crop, Loader, Loading
from fastaug.data.packed.crc32c import masked_crc32c
from fastaug.data.sampler import Order
from fastaug.data.shards.layout import Settings
from fastaug.data.shards.writer import make_shards
from fastaug.data.splits import Splits

BATCH, SIDE = 64, 224


def write_forms(folder: Path, index: Index) -> dict[str, str]:
    """Every form of the images of `index` below `folder`, in the order of its ids: its name and data.root."""
    rows = [(Path(index.path(id).decode()).read_bytes(), int(index.labels[id])) for id in range(len(index))]
    make_shards(index, folder / "shards", Settings("jpeg", 4096, 90, None, "ignore"), workers=1, console=Console(False))
    for name in ("wds", "tfrecord", "hfds"):
        (folder / name).mkdir()
    with tarfile.open(folder / "wds" / "all-000.tar", "w") as archive:
        for row, (content, label) in enumerate(rows):
            for kind, payload in (("jpg", content), ("cls", str(label).encode())):
                (folder / "member").write_bytes(payload)
                archive.add(folder / "member", f"{row:06d}.{kind}")
    (folder / "tfrecord" / "all.tfrecord").write_bytes(b"".join(_framed(_example(*row)) for row in rows))
    forms = {"folder": str(index.root), "shards": str(folder / "shards"), "wds": f"wds:{folder / 'wds'}"}
    forms["tfrecord"] = f"tfrecord:{folder / 'tfrecord'}"
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        print("hfds: pyarrow is not installed")
        return forms
    table = pyarrow.table({"image": [{"bytes": row[0], "path": ""} for row in rows], "label": [row[1] for row in rows]})
    with pyarrow.ipc.new_stream(str(folder / "hfds" / "all.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return forms | {"hfds": f"hfds:{folder / 'hfds'}"}


def _framed(message: bytes) -> bytes:
    head = struct.pack("<Q", len(message))
    checks = [struct.pack("<I", masked_crc32c(np.frombuffer(part, np.uint8))) for part in (head, message)]
    return head + checks[0] + message + checks[1]


def _example(content: bytes, label: int) -> bytes:
    features = ((b"image", _field(1, _field(1, content))), (b"label", _field(3, _field(1, bytes([label])))))
    return _field(1, b"".join(_field(1, _field(1, name) + _field(2, value)) for name, value in features))


def _field(number: int, content: bytes) -> bytes:
    length, head = len(content), bytes([number << 3 | 2])
    while length > 0x7F:
        head, length = head + bytes([length & 0x7F | 0x80]), length >> 7
    return head + bytes([length]) + content


def loader_of(index: Index) -> Loader:
    """The training loader of a run on the index, one thread, no GPU."""
    ids = np.arange(len(index), dtype=np.int64)
    parts = DataParts(index.classes, Splits(ids, ids[:0], ids[:0], ids), index)
    return build_loader(parts, ids, Crop("rrc", SIDE), Loading(torch.device("cpu"), largest_batch=BATCH))


def measured(forms: dict[str, str], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Images a processor second of each form in every round, and the processor seconds of its index."""
    indices, seconds = {}, {}
    for name, root in forms.items():
        begin = time.process_time()
        indices[name] = find_index(find_root(root, progress=False), "ignore", progress=False)
        seconds[name] = time.process_time() - begin
    loaders = {name: loader_of(index) for name, index in indices.items()}
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    images = len(indices["folder"])
    order = Order(ids=np.arange(images, dtype=np.int64), seed=0, batch_size=BATCH)
    for turn in range(-1, rounds):  # the first warms up
        names = list(forms)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = time.process_time()
            seen = sum(len(batch.ids) for batch in loaders[name].batches(_epoch(order, turn + 1)))
            if turn >= 0:
                speeds[name].append(seen / (time.process_time() - begin))
    return speeds, seconds


def _epoch(order: Order, epoch: int) -> Iterator[Any]:
    return order.requests(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)


def report(speeds: dict[str, list[float]], seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """The figures of each form."""
    shards = speeds["shards"]
    return {
        name: {
            "images_per_core_second": statistics.median(found),
            "least": min(found),
            "most": max(found),
            "of_shards": statistics.median(one / other for one, other in zip(found, shards, strict=True)),
            "index_seconds": seconds[name],
        }
        for name, found in speeds.items()
    }


def main() -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packed", description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="images of 500 x 375 pixels, of 10 classes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        index = load_index(make_photo_folder(Path(made) / "photos", arguments.images, 10), cache=Path(made) / "cache")
        figures = report(*measured(write_forms(Path(made), index), arguments.rounds))
    for name, row in figures.items():
        speed = f"{row['images_per_core_second']:6.1f} ({row['least']:.1f} to {row['most']:.1f}) images a core-second"
        print(f"{name:9} {speed}, {row['of_shards']:.3f} of shards; index {row['index_seconds']:.2f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

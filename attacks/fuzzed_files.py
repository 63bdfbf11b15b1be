"""Binary files to fuzz: checkpoints, weights, shard folders, packed sets and published arrays."""

import hashlib
import io
import json
import math
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.ipc
import pyarrow.parquet
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from attacks.target import Target
from fastaug.console import Console
from fastaug.data.channel_files import decode_channels, extent_by_header
from fastaug.data.image_files import DamagedImageError
from fastaug.data.image_headers import Status
from fastaug.data.index import load_index
from fastaug.data.packed.crc32c import masked_crc32c
from fastaug.data.packed.index import PackedSet, load_packed
from fastaug.data.shards.layout import MANIFEST, TABLE, Settings, open_shards
from fastaug.data.shards.writer import make_shards
from fastaug.data.sources.array_files import read_folder
from fastaug.data.sources.arrays import KINDS
from fastaug.errors import DataError, RecipeError, StorageError
from fastaug.nets.initial_weights import read_weights
from fastaug.training.checkpoint import _write_manifest, load, save
from fastaug.training.table_files import Table

# ---- checkpoints ----

STEP = "step-00000004"


def _write_checkpoint(folder: Path) -> None:
    state = {"step": 4, "meta": {"learned": {}}, "lines": {"a": 1}, "optimizer": {"m": torch.ones(3)}}
    table = Table({"rows.a": torch.ones(4, 2)}, torch.tensor([True, False, True, False]))
    save(folder, 4, {"model": {"w": torch.ones(4)}}, state, {"rows": table})


def _write_unsealed(folder: Path) -> None:
    """The same with its state's archive unpacked, below the name that a seal gives it."""
    _write_checkpoint(folder)
    unpacked(folder / STEP / "state.pt")


def unpacked(file: Path) -> None:
    """The members of a zip file in a folder of that name with a dash behind, in its place."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(f"{file}-")  # noqa: S202  # our own file
    file.unlink()


def packed(folder: Path) -> None:
    """Undoes `unpacked`: stored, as torch and numpy store, with the CRCs of what is there now."""
    with zipfile.ZipFile(str(folder).removesuffix("-"), "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    shutil.rmtree(folder)


def _seal_checkpoint(folder: Path) -> None:
    packed(folder / STEP / "state.pt-")
    (folder / STEP / "manifest.json").unlink()
    _write_manifest(folder / STEP, 4)


def _load(folder: Path) -> None:
    load(folder / STEP)


# ---- weights of others ----


def _write_weights(folder: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2, 3), "b": torch.ones(2).half()}, "epoch": 3}, folder / "a.pth")
    unpacked(folder / "a.pth")
    torch.save({"w": torch.ones(2)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"w": torch.ones(2, 3)}, folder / "a.safetensors")


def _weights(name: str, folder: Path) -> None:
    read_weights(str(folder / name))


# ---- images in larger files ----


def image(number: int) -> bytes:
    """A small PNG file."""
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (40 * number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def _write_shards(folder: Path) -> None:
    for label in "ab":
        (folder / "set" / label).mkdir(parents=True)
        for number in range(2):
            (folder / "set" / label / f"{number}.png").write_bytes(image(number))
    index = load_index(folder / "set", threads=1, cache=folder / "cache")
    for kind, quality in (("raw", None), ("jpeg", 90)):
        make_shards(
            index, folder / kind, Settings(kind, 4, quality, 3, "ignore"), workers=1, console=Console(main=False)
        )
        unpacked(folder / kind / TABLE)
    shutil.rmtree(folder / "set")
    shutil.rmtree(folder / "cache")


def _seal_shards(folder: Path) -> None:
    for kind in ("raw", "jpeg"):
        packed(folder / kind / f"{TABLE}-")
        digest = hashlib.sha256((folder / kind / TABLE).read_bytes()).hexdigest().encode()
        manifest = folder / kind / MANIFEST
        manifest.write_bytes(re.sub(rb'("table": )"[0-9a-f]{64}"', rb'\1"' + digest + b'"', manifest.read_bytes()))


def _shards(kind: str, folder: Path) -> None:
    index = open_shards(folder / kind)
    for id in np.flatnonzero(index.status == Status.OK).tolist():
        if index.settings.format == "raw":
            index.pixels(id, 0, 0, int(index.heights[id]), int(index.widths[id])).sum()
        else:
            index.encoded(id)


def _write_tars(folder: Path) -> None:
    with tarfile.open(folder / "train-000.tar", "w") as archive:
        for number, (ending, label) in enumerate(
            [("cls", b"0"), ("json", b'{"label": 1}'), ("cls", b"b"), ("cls", b"b")]
        ):
            for name, content in ((f"{number}.png", image(number)), (f"{number}.{ending}", label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    (folder / "_info.json").write_text(
        json.dumps({"splits": {"t": {"filenames": ["train-000.tar"], "shard_lengths": [4]}}})
    )


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message of less than 128 bytes, or of two digits of them."""
    size = len(content)
    return bytes([number << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + content


def _write_examples(folder: Path) -> None:
    (folder / "messages").mkdir()
    for number in range(4):
        label = _field(3, bytes([8, number % 2]))
        features = {b"image/encoded": _field(1, _field(1, image(number))), b"label": label}
        entries = (_field(1, _field(1, name) + _field(2, value)) for name, value in features.items())
        (folder / "messages" / str(number)).write_bytes(_field(1, b"".join(entries)))
    (folder / "label.labels.txt").write_text("cat\ndog\n")
    described = {"name": "x", "splits": [{"name": "train", "shardLengths": ["4"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(described))


def _seal_examples(folder: Path) -> None:
    def crc(content: bytes) -> bytes:
        return struct.pack("<I", masked_crc32c(np.frombuffer(content, np.uint8)))

    messages = [path.read_bytes() for path in sorted((folder / "messages").iterdir())]
    framed = ((struct.pack("<Q", len(message)), message) for message in messages)
    content = b"".join(head + crc(head) + message + crc(message) for head, message in framed)
    (folder / "x-train.tfrecord-00000-of-00001").write_bytes(content)


def _write_arrow(folder: Path) -> None:
    names = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    features = {"img": {"_type": "Image"}, "label": names}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": image(number), "path": f"{number}.png"} for number in range(4)], kind)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table({"img": images, "label": [0, 1, 0, 1]}).replace_schema_metadata(metadata)
    (folder / "train").mkdir()
    with (
        pyarrow.OSFile(str(folder / "train" / "a.arrow"), "wb") as out,
        pyarrow.ipc.new_stream(out, table.schema) as to,
    ):
        to.write_table(table)
    (folder / "train" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": "train"})
    )
    (folder / "train" / "dataset_info.json").write_text(json.dumps({"features": features}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pyarrow.ipc.new_file(str(folder / "b.arrow"), table.schema) as to:
        to.write_table(table)


def _write_parquet(folder: Path) -> None:
    images = pyarrow.array([image(number) for number in range(4)], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["a", "b", "a", "b"]}), folder / "a.parquet")


def _images(kind: str, name: str, folder: Path) -> None:
    """Every image of a packed set, whose index is made anew."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    index = load_packed(PackedSet(kind, str(folder / name)), threads=1, cache=folder / "cache")
    for id in np.flatnonzero(index.status == Status.OK).tolist():
        index.encoded(id)


# ---- images of n channels ----


def _write_channels(folder: Path) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(folder / "a.npy", pixels)
    tifffile.imwrite(folder / "a.tif", pixels.transpose(2, 0, 1), planarconfig="separate", photometric="minisblack")


def _channels(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    extent_by_header(io.BytesIO(content), len(content), 5)
    decode_channels(np.frombuffer(content, np.uint8), 5)


# ---- published arrays ----


def _write_arrays(folder: Path) -> None:
    for name, axes in (("images-idx3", (20, 2, 2)), ("labels-idx1", (20,))):
        for part in ("train", "t10k"):
            head = bytes((0, 0, 8, len(axes))) + struct.pack(f">{len(axes)}I", *axes)
            (folder / f"{part}-{name}-ubyte").write_bytes(head + bytes(i % 10 for i in range(math.prod(axes))))
    rows = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}
    for name, table in (("meta", {"fine_label_names": ["cat", "dog"]}), ("train", rows), ("test", rows)):
        (folder / name).write_bytes(pickle.dumps(table, 2))
    for part in ("train", "test"):
        pixels, labels = np.zeros((32, 32, 3, 10), np.uint8), np.arange(1, 11, dtype=np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": labels}, do_compression=True)


def _arrays(kind: str, folder: Path) -> None:
    layout = KINDS[kind][0]
    layout.parse(read_folder(folder, layout.files))


FILES = {
    "checkpoint": Target(  # all but manifest.json, in which blanks mean nothing
        _write_checkpoint, {"load": _load}, (StorageError,), exact="*.[!j]*"
    ),
    "sealed checkpoint": Target(_write_unsealed, {"load": _load}, (StorageError,), _seal_checkpoint),
    "weights": Target(
        _write_weights,
        {name: partial(_weights, name) for name in ("a.pth", "old.pth", "a.safetensors")},
        (RecipeError,),
        lambda folder: packed(folder / "a.pth-"),
    ),
    "shards": Target(
        _write_shards, {kind: partial(_shards, kind) for kind in ("raw", "jpeg")}, (DataError,), _seal_shards
    ),
    "wds": Target(_write_tars, {"wds": partial(_images, "wds", "")}, (DataError,)),
    "tfrecord": Target(_write_examples, {"tfrecord": partial(_images, "tfrecord", "")}, (DataError,), _seal_examples),
    "hfds": Target(
        _write_arrow, {name: partial(_images, "hfds", name) for name in ("", "b.arrow")}, (DataError, StorageError)
    ),
    "parquet": Target(_write_parquet, {"parquet": partial(_images, "parquet", "")}, (DataError, StorageError)),
    "channels": Target(
        _write_channels, {name: partial(_channels, name) for name in ("a.npy", "a.tif")}, (DamagedImageError, DataError)
    ),
    "arrays": Target(
        _write_arrays, {kind: partial(_arrays, kind) for kind in ("mnist", "cifar100", "svhn")}, (DataError,)
    ),
}

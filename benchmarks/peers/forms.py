"""The photographs that the benchmarks read, made here, and the forms in which some loaders want them.

A set is a folder: `files/train/<class>/*.jpg`, `files/val/...`, and beside `files` the forms made from them.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.child import ROOT

WIDTH, HEIGHT, QUALITY, CLASSES = 500, 375, 90, 8
SHORT_SIDE = 256  # of the prepared forms; 341 x 256 pixels
TAR_IMAGES = 64  # in a tar shard
CACHE_FACTOR = 2  # larger than cache: as many bytes as this times the last-level cache

SERVE, MAKE_SHARDS = Path(__file__).with_name("serve.py"), ROOT / "tools" / "make_shards.py"
NAMES = {"tar": "tar/{00000..%05d}.tar", "files": "files/train", "root": "files"}


@contextmanager
def data_folder(given: Path | None) -> Iterator[Path]:
    """The folder for data: the given one, or one that is removed in the end."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fastaug-bench-") as name:
        yield Path(name)


def labelled_files(folder: Path) -> list[tuple[Path, int]]:
    """The files of a folder of class folders, sorted, with the number of their class."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    return [(file, label) for label, name in enumerate(classes) for file in sorted(name.glob("*.jpg"))]


def shrunk(image: Image.Image) -> Image.Image:
    """The image with its short side at SHORT_SIDE, antialiased."""
    factor = SHORT_SIDE / min(image.size)
    width, height = (int(side * factor) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; ValueError where the system does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 2**10, "M": 2**20}
    found = [int(text[:-1]) * units[text[-1]] for text in (path.read_text().strip() for path in sizes)]
    if not found:
        raise ValueError("the system names no cache sizes; give the number of images instead")
    return max(found)


def write_set(folder: Path, images: int) -> dict[str, Any]:
    """Writes `images` crops of scikit-learn's photographs, or finds them written; what they are.

    500x375, JPEG quality 90, 4:2:0, as photographs of a large set have. ValueError when the folder holds another set.
    """
    about = {"images": images, "width": WIDTH, "height": HEIGHT, "quality": QUALITY, "subsampling": "4:2:0"}
    manifest = folder / "set.json"
    if not manifest.exists():
        draw = np.random.default_rng(0)
        _write_crops(folder / "files" / "train", images, draw)
        _write_crops(folder / "files" / "val", CLASSES, draw)
        manifest.write_text(json.dumps(about))
    if json.loads(manifest.read_text()) != about:
        raise ValueError(f"{folder} holds another set than asked for, {manifest.read_text()}; name another --data")
    return about | {"mean_bytes": size_of(folder / "files" / "train") / images}


def _write_crops(folder: Path, images: int, draw: np.random.Generator) -> None:
    from sklearn.datasets import load_sample_image

    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(images):
        photograph = photographs[number // CLASSES % 2][:, :: draw.choice([1, -1])]
        height, width = photograph.shape[:2]
        top, left = draw.integers(0, height - HEIGHT + 1), draw.integers(0, width - WIDTH + 1)
        crop = Image.fromarray(np.ascontiguousarray(photograph[top : top + HEIGHT, left : left + WIDTH]))
        file = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        crop.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def source(folder: Path, form: str) -> Path:
    """Where a form of the set in `folder` lies, as its loader wants to be told."""
    name = NAMES.get(form, form + (".beton" if form.startswith("beton") else ""))
    if form == "tar":
        name %= -(-len(labelled_files(folder / "files" / "train")) // TAR_IMAGES) - 1
    return folder / name


def make_form(folder: Path, form: str, python: str = sys.executable) -> dict[str, float]:
    """Writes a form of the set in `folder` unless it is there: seconds, or 0, and bytes.

    RuntimeError with the reason when it cannot be written.
    """
    place = folder / "tar" if form == "tar" else source(folder, form)
    start = time.perf_counter()
    made = not place.exists()
    if made:
        _make(folder, form, place, python)
    return {"seconds": time.perf_counter() - start if made else 0.0, "bytes": size_of(place)}


def _make(folder: Path, form: str, place: Path, python: str) -> None:
    unfinished = place.with_name(f"unfinished-{os.getpid()}-{place.name}")
    train = folder / "files" / "train"
    if form == "tar":
        _write_tars(train, unfinished)
    elif form.startswith("beton"):
        _run([python, str(SERVE), "--write", form, str(train), str(unfinished)])
    else:
        words = [str(folder / "files"), str(unfinished), "--short-side", str(SHORT_SIDE)]
        words += ["--format", "raw"] if form == "shards_raw" else ["--format", "jpeg", "--quality", str(QUALITY)]
        _run([sys.executable, str(MAKE_SHARDS), *words])
    unfinished.rename(place)


def _run(command: list[str]) -> None:
    if not Path(command[1]).exists():
        raise RuntimeError(f"{Path(command[1]).name} does not exist")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise RuntimeError(lines[-1])


def _write_tars(train: Path, folder: Path) -> None:
    """Samples in a fixed shuffled order, so that a shard holds all classes."""
    folder.mkdir()
    files = labelled_files(train)
    order = np.random.default_rng(0).permutation(len(files))
    for start in range(0, len(files), TAR_IMAGES):
        with tarfile.open(folder / f"{start // TAR_IMAGES:05d}.tar", "w") as tar:
            for i in order[start : start + TAR_IMAGES]:
                path, label = files[i]
                for suffix, data in ((".jpg", path.read_bytes()), (".cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{i:06d}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))

import gzip
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from fastaug.data.index import Folder, Index, cache_dir, load_index
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.resident import ResidentLoader
from fastaug.data.sampler import Request
from fastaug.data.sources.arrays import materialize_arrays
from fastaug.data.sources.inert_pickle import read_table, uint8_rows
from fastaug.errors import DataError, StorageError
from fastaug.recipe.schema import Data, Recipe
from fastaug.training.build_data import find_data

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_NAMES = [f"kind_{99 - label}/ä" for label in range(100)]  # their own order is not that of the labels


class Source(NamedTuple):
    """Images [N, H, W(, 3)] and labels of both parts as the files hold them."""

    train: tuple[np.ndarray, list[int]]
    test: tuple[np.ndarray, list[int]]


# --- files as published


class Python2(pickle._Pickler):
    """Writes as Python 2 did: all strings as byte strings, numpy's old module name."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, obj: str | bytes) -> None:
        raw = obj if isinstance(obj, bytes) else obj.encode("latin1")
        if self.proto == 0:
            self.write(b"S" + ascii(raw)[1:].encode() + b"\n")
        else:
            head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
            self.write(head + raw)
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_string

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or obj.__name__}\n".encode())
        self.memoize(obj)


def python2(value: object, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    Python2(out, protocol).dump(value)
    return out.getvalue()


def python3(protocol: int) -> Callable[[object], bytes]:
    return lambda value: pickle.dumps(value, protocol)


def drawn(count: int, classes: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, list[int]]:
    """Every class as often as every other, in mixed order."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.arange(count) % classes).tolist()
    return draw.integers(0, 256, (count, *shape), dtype=np.uint8), labels


def rows(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072)


def cifar10(folder: Path, dump: Callable[[object], bytes] = python2) -> Source:
    folder.mkdir(parents=True)
    source = Source(drawn(50, 10, (32, 32, 3), 0), drawn(20, 10, (32, 32, 3), 1))
    meta = {b"num_cases_per_batch": 10, b"label_names": [name.encode() for name in CIFAR10_NAMES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2(meta, 0))
    parts = {f"data_batch_{n + 1}": (source.train[0][n::5], source.train[1][n::5]) for n in range(5)}
    images, labels = zip(*parts.values(), strict=True)
    source = source._replace(train=(np.concatenate(images), list(chain(*labels))))
    for name, (images, labels) in (parts | {"test_batch": source.test}).items():
        files = [b"%s_%d.png" % (name.encode(), row) for row in range(len(labels))]
        table = {b"batch_label": b"a batch", b"labels": labels, b"data": rows(images), b"filenames": files}
        (folder / name).write_bytes(dump(table))
    return source


def cifar10_binary(folder: Path) -> Source:
    source = cifar10(folder)
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_NAMES) + "\n\n")
    for start, name in [*((10 * n, f"data_batch_{n + 1}") for n in range(5)), (0, "test_batch")]:
        images, labels = source.test if name == "test_batch" else (part[start : start + 10] for part in source.train)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], rows(images)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
        (folder / name).unlink()
    (folder / "batches.meta").unlink()
    return source


def cifar100(folder: Path) -> Source:
    folder.mkdir(parents=True)
    source = Source(drawn(200, 100, (32, 32, 3), 2), drawn(100, 100, (32, 32, 3), 3))
    names = [name.encode("latin1") for name in CIFAR100_NAMES]
    (folder / "meta").write_bytes(python2({b"fine_label_names": names, b"coarse_label_names": [b"a", b"b"]}))
    for name, (images, labels) in (("train", source.train), ("test", source.test)):
        data = np.asfortranarray(rows(images))
        table = {b"fine_labels": labels, b"coarse_labels": [label // 5 for label in labels], b"data": data}
        (folder / name).write_bytes(python2(table))
    return source


def cifar100_binary(folder: Path) -> Source:
    source = cifar100(folder)
    (folder / "fine_label_names.txt").write_text("\n".join(CIFAR100_NAMES), encoding="latin1")
    for name, (images, labels) in (("train", source.train), ("test", source.test)):
        fine = np.array(labels, np.uint8)[:, None]
        (folder / f"{name}.bin").write_bytes(np.concatenate([fine // 5, fine, rows(images)], axis=1).tobytes())
        (folder / name).unlink()
    return source


def mnist(folder: Path, gz: bool = False) -> Source:
    folder.mkdir(parents=True)
    source = Source(drawn(30, 10, (28, 28), 4), drawn(20, 10, (28, 28), 5))
    for name, (images, labels) in (("train", source.train), ("t10k", source.test)):
        for kind, values in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
            raw = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
            file = folder / f"{name}-{kind}-ubyte{'.gz' * gz}"
            file.write_bytes(gzip.compress(raw) if gz else raw)
    return source


def svhn(folder: Path) -> Source:
    folder.mkdir(parents=True)
    source = Source(drawn(30, 10, (32, 32, 3), 6), drawn(20, 10, (32, 32, 3), 7))
    for name, (images, labels) in (("train", source.train), ("test", source.test)):
        given = np.array([[label or 10] for label in labels], np.uint8)  # the digit 0 is label 10
        table = {"X": images.transpose(1, 2, 3, 0), "y": given}
        savemat(folder / f"{name}_32x32.mat", table, do_compression=name == "train")
    return source


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)
    return archive


# --- what comes out


def assert_equal(root: Path, source: Source, classes: list[str]) -> Index:
    """Every file is its row of the source, under the source's label."""
    index = load_index(root)
    assert list(index.classes) == classes
    assert index.reasons == {}
    found = {"train": set(), "test": set()}
    for id in range(len(index)):
        path = Path(os.fsdecode(index.path(id)))
        part, row = path.parent.parent.name, int(path.stem)
        images, labels = source.train if part == "train" else source.test
        assert index.folders[id] == Folder[part.upper()]
        assert index.labels[id] == labels[row]
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), images[row])
        found[part].add(row)
    assert found == {"train": set(range(len(source.train[1]))), "test": set(range(len(source.test[1])))}
    return index


CLASSES = {
    "cifar10": [f"{label:02d}_{name}" for label, name in enumerate(CIFAR10_NAMES)],
    "cifar100": [f"{label:02d}_kind_{99 - label}_" for label in range(100)],
    "mnist": list("0123456789"),
    "svhn": list("0123456789"),
}
FORMS: dict[str, tuple[str, str, Callable[[Path], Source], str]] = {  # kind, folder, writer, where data.root points
    "cifar10": ("cifar10", "cifar-10-batches-py", cifar10, "cifar-10-batches-py"),
    "cifar10 parent": ("cifar10", "cifar-10-batches-py", cifar10, ""),
    "cifar10 renamed": ("cifar10", "mine", cifar10, "mine"),
    "cifar10 protocol 0": ("cifar10", "c", lambda folder: cifar10(folder, lambda value: python2(value, 0)), "c"),
    "cifar10 python 3, 2": ("cifar10", "c", lambda folder: cifar10(folder, python3(2)), "c"),
    "cifar10 python 3, 4": ("cifar10", "c", lambda folder: cifar10(folder, python3(4)), "c"),
    "cifar10 python 3, 5": ("cifar10", "c", lambda folder: cifar10(folder, python3(5)), "c"),
    "cifar10 binary": ("cifar10", "cifar-10-batches-bin", cifar10_binary, ""),
    "cifar100": ("cifar100", "cifar-100-python", cifar100, "cifar-100-python"),
    "cifar100 parent": ("cifar100", "cifar-100-python", cifar100, ""),
    "cifar100 binary": ("cifar100", "cifar-100-binary", cifar100_binary, "cifar-100-binary"),
    "mnist": ("mnist", "m", mnist, "m"),
    "mnist gz": ("mnist", "m", lambda folder: mnist(folder, gz=True), "m"),
    "mnist parent": ("mnist", "MNIST/raw", mnist, ""),
    "svhn": ("svhn", "s", svhn, "s"),
    "svhn parent": ("svhn", "svhn", svhn, ""),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_file_is_its_row_of_the_source(tmp_path: Path, form: str) -> None:
    kind, folder, write, place = FORMS[form]
    source = write(tmp_path / folder)
    root = materialize_arrays(kind, tmp_path / place)
    assert root.parent == cache_dir() / "arrays"
    assert root.name.startswith(f"{kind}-")
    assert_equal(root, source, CLASSES[kind])


@pytest.mark.parametrize(
    ("kind", "folder", "write", "archive"),
    [
        ("cifar10", "cifar-10-batches-py", cifar10, "cifar-10-python.tar.gz"),
        ("cifar10", "cifar-10-batches-bin", cifar10_binary, "cifar-10-binary.tar.gz"),
        ("cifar100", "cifar-100-python", cifar100, "cifar-100-python.tar.gz"),
    ],
)
def test_an_archive_is_read_without_unpacking_it(
    tmp_path: Path, kind: str, folder: str, write: Callable[[Path], Source], archive: str
) -> None:
    source = write(tmp_path / folder)
    file = packed(tmp_path / folder, tmp_path / archive)
    root = materialize_arrays(kind, file)
    assert_equal(root, source, CLASSES[kind])
    assert materialize_arrays(kind, tmp_path) == root  # found beside it
    assert os.listdir(tmp_path) == [archive]


@pytest.mark.parametrize("form", ["cifar10", "cifar100", "mnist gz"])
@pytest.mark.parametrize("loader", ["dali", "resident"])
def test_loaders_give_the_pixels_of_the_source(tmp_path: Path, form: str, loader: str) -> None:
    kind, folder, write, place = FORMS[form]
    source = write(tmp_path / folder)
    index = load_index(materialize_arrays(kind, tmp_path / place))
    size = 16
    loading = Loading(torch.device("cpu"), largest_batch=size)
    dali = DaliLoader(index, Crop("whole", source.test[0].shape[1]), loading)
    ids = np.arange(len(index))
    chosen = ResidentLoader(dali, ids, loading) if loader == "resident" else dali
    requests = [Request(0, ids[start : start + size]) for start in range(0, len(ids), size)]
    seen = 0
    for batch in chosen.batches(requests):
        for image, label, id in zip(batch.images.numpy(), batch.labels.tolist(), batch.ids.tolist(), strict=True):
            path = Path(os.fsdecode(index.path(id)))
            images, labels = source.train if index.folders[id] == Folder.TRAIN else source.test
            wanted = images[int(path.stem)]
            assert np.array_equal(image, wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, 2))
            assert label == labels[int(path.stem)]
            seen += 1
    assert seen == len(index)


def test_a_recipe_names_it(tmp_path: Path) -> None:
    source = mnist(tmp_path / "m")
    recipe = Recipe(data=Data(root=f"mnist:{tmp_path / 'm'}", verify=False))
    parts = find_data(recipe, Accelerator(cpu=True))
    index, splits = parts.index, parts.splits
    assert index is not None
    assert index.root == materialize_arrays("mnist", tmp_path / "m")
    assert (len(splits.train), len(splits.test)) == (len(source.train[1]), len(source.test[1]))


# --- made once


def test_a_second_call_does_no_work_until_the_source_changes(tmp_path: Path) -> None:
    mnist(tmp_path / "m")
    root = materialize_arrays("mnist", tmp_path / "m", tmp_path / "cache")
    gone = next(root.glob("train/*/*.png"))
    gone.unlink()
    assert materialize_arrays("mnist", tmp_path / "m", tmp_path / "cache") == root
    assert not gone.exists()
    file = tmp_path / "m" / "train-labels-idx1-ubyte"
    os.utime(file, ns=(1, 1))
    other = materialize_arrays("mnist", tmp_path / "m", tmp_path / "cache")
    assert other != root
    assert (other / gone.relative_to(root)).exists()


def test_processes_that_race_leave_one_whole_set(tmp_path: Path) -> None:
    source = cifar10(tmp_path / "c")
    code = "import sys, fastaug.data.sources.arrays as a; print(a.materialize_arrays('cifar10', sys.argv[1]))"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "c")]
    env = os.environ | {"FASTAUG_CACHE": str(tmp_path / "cache")}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    first, second = (process.communicate()[0].strip() for process in running)
    assert first == second
    assert os.listdir(tmp_path / "cache" / "arrays") == [Path(first).name]
    assert_equal(Path(first), source, CLASSES["cifar10"])


def test_importing_is_light() -> None:
    code = "import sys, fastaug.data.sources.arrays\nprint([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["torch", "nvidia.dali", "PIL", "rich"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_is_shown_on_request_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mnist(tmp_path / "m")
    materialize_arrays("mnist", tmp_path / "m", tmp_path / "one")
    assert capfd.readouterr() == ("", "")
    materialize_arrays("mnist", tmp_path / "m", tmp_path / "two", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "mnist train" in err


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    mnist(tmp_path / "m")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="FASTAUG_CACHE"):
        materialize_arrays("mnist", tmp_path / "m", tmp_path / "file" / "below")


# --- bad input


def refused(kind: str, place: Path, *parts: str) -> None:
    cache = place.parent / "cache"
    with pytest.raises(DataError) as caught:
        materialize_arrays(kind, place, cache)
    for part in parts:
        assert part in str(caught.value)
    assert not cache.exists() or os.listdir(cache) == []


class Runs:
    """Pickled, it asks for `touch canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("place", ["key", "value", "data", "top"])
def test_a_pickle_that_runs_something_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Runs(canary), 2))
    assert canary.exists()  # it would have
    canary.unlink()
    folder = tmp_path / "c"
    cifar10(folder)
    table = {b"labels": [0], b"data": np.zeros((1, 3072), np.uint8)}
    bad: object = {
        "key": {Runs(canary): 1} | table,
        "value": table | {b"filenames": [Runs(canary)]},
        "data": table | {b"data": Runs(canary)},
        "top": Runs(canary),
    }[place]
    (folder / "data_batch_2").write_bytes(pickle.dumps(bad, 2))
    refused("cifar10", folder, str(folder / "data_batch_2"), "system", "nothing was run")
    packed(folder, tmp_path / "c.tar.gz")
    refused("cifar10", tmp_path / "c.tar.gz", "member data_batch_2", "nothing was run")
    assert not canary.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\neval\n.",
        b"cnumpy\nload\n.",
        b"cnumpy\ndtype.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__subclasses__\x93.",
        b"c__main__\nanything\n.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"Pid\n.",  # a persistent id
        b"cnumpy\ndtype\n}b.",  # state for the class itself
        b"cnumpy\ndtype\n(N}S'__init__'\nI1\nstb.",
        b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
        b"I1\n.",
        b"",
        b"\x80\x02}q\x00.",
        b"\x80\x02r\xff\xff\xff\x7f.",
    ],
)
def test_foreign_pickles_are_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="here"):
        uint8_rows(read_table(raw, "here").get("data"), "here")


WHOLE = python2({b"labels": [1, 2], b"data": np.arange(12, dtype=np.uint8).reshape(2, 6), b"filenames": [b"a", b"b"]})


@pytest.mark.parametrize("count", [11, 13])
def test_an_array_has_as_many_bytes_as_its_shape_says(count: int) -> None:
    pixels = bytes(range(12))
    raw = WHOLE.replace(b"U\x0c" + pixels, b"U" + bytes([count]) + bytes(count))
    assert raw != WHOLE
    with pytest.raises(DataError, match=rf"here: 'data' has {count} bytes for shape \(2, 6\)"):
        uint8_rows(read_table(raw, "here")["data"], "here")


@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255), cut=st.booleans())
def test_broken_pickles_are_refused_or_read_but_never_crash(at: int, value: int, cut: bool) -> None:
    raw = WHOLE[:at] if cut else WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]
    try:
        array = uint8_rows(read_table(raw, "here").get("data"), "here")
    except DataError as error:
        assert str(error).startswith("here: ")  # noqa: PT017
    else:
        assert not cut
        assert array.dtype == np.uint8


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((10, 3071), np.uint8),
        np.zeros((5, 6144), np.uint8),
        np.zeros((10, 3072), np.int8),
        np.zeros((5, 3072), np.uint16),
        np.zeros(3072, np.uint8),
        np.zeros((9, 3072), np.uint8),
        np.full((10, 3072), None),
        [0] * 3072,
        b"text",
    ],
    ids=["short rows", "long rows", "int8", "uint16", "one axis", "a row less", "objects", "list", "bytes"],
)
def test_wrong_arrays_are_refused(tmp_path: Path, data: object) -> None:
    cifar10(tmp_path / "c")
    file = tmp_path / "c" / "data_batch_3"
    file.write_bytes(python2({b"labels": list(range(10)), b"data": data}))
    refused("cifar10", tmp_path / "c", str(file))


@pytest.mark.parametrize("labels", [[*range(9), 10], [*range(9), -1], list(range(9)), None, ["0"] * 10])
def test_wrong_labels_are_refused(tmp_path: Path, labels: object) -> None:
    cifar10(tmp_path / "c")
    file = tmp_path / "c" / "data_batch_3"
    file.write_bytes(python2({b"labels": labels, b"data": np.zeros((10, 3072), np.uint8)}))
    refused("cifar10", tmp_path / "c", str(file), "label")


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    cifar10(tmp_path / "c")
    (tmp_path / "c" / "test_batch").write_bytes(python2({b"labels": [0], b"data": np.zeros((1, 3072), np.uint8)}))
    refused("cifar10", tmp_path / "c", "no test image of class 01_automobile")


Spoil = Callable[[Path], object]
HALF: Spoil = lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])  # noqa: E731
MORE: Spoil = lambda file: file.write_bytes(file.read_bytes() + b"\0")  # noqa: E731
EMPTY: Spoil = lambda file: file.write_bytes(b"")  # noqa: E731
BROKEN = [
    *(("cifar10", name, spoil) for name in ("batches.meta", "data_batch_4", "test_batch") for spoil in (HALF, EMPTY)),
    *(("cifar10 binary", "data_batch_5.bin", spoil) for spoil in (MORE, EMPTY)),
    *(("cifar100", name, spoil) for name in ("meta", "train", "test") for spoil in (HALF, EMPTY)),
    *(
        ("mnist", f"{part}-ubyte", spoil)
        for part in ("t10k-images-idx3", "train-labels-idx1")
        for spoil in (HALF, MORE)
    ),
    *(
        ("mnist gz", f"{part}-ubyte.gz", spoil)
        for part in ("t10k-images-idx3", "train-labels-idx1")
        for spoil in (HALF, EMPTY)
    ),
]


@pytest.mark.parametrize(("form", "name", "spoil"), BROKEN)
def test_damaged_files_are_named(tmp_path: Path, form: str, name: str, spoil: Spoil) -> None:
    kind, folder, write, _ = FORMS[form]
    write(tmp_path / folder)
    spoil(tmp_path / folder / name)
    refused(kind, tmp_path / folder, str(tmp_path / folder / name), "download it again")


@pytest.mark.parametrize("form", ["cifar10", "cifar10 binary", "cifar100", "mnist", "mnist gz"])
def test_each_missing_file_is_named(tmp_path: Path, form: str) -> None:
    kind, folder, write, _ = FORMS[form]
    write(tmp_path / folder)
    wanted = sorted((tmp_path / folder).iterdir())
    for file in wanted:
        raw = file.read_bytes()
        file.unlink()
        refused(kind, tmp_path / folder, f"lacks {file.name.removesuffix('.gz')}")
        file.write_bytes(raw)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").unlink()
    file = packed(tmp_path / "c", tmp_path / "c.tar.gz")
    refused("cifar10", file, str(file), "lacks data_batch_2")
    HALF(file)
    refused("cifar10", file, str(file), "truncated", "download it again")
    EMPTY(file)
    refused("cifar10", file, str(file), "no tar file")


def test_wrong_places_are_named(tmp_path: Path) -> None:
    refused("cifar10", tmp_path / "none", "does not exist")
    (tmp_path / "empty").mkdir()
    refused("cifar10", tmp_path / "empty", "holds no cifar10", "batches.meta", "cifar-10-python.tar.gz")
    cifar10(tmp_path / "c")
    refused("cifar100", tmp_path / "c", "holds no cifar100")
    mnist(tmp_path / "m")
    refused("mnist", tmp_path / "m" / "train-images-idx3-ubyte", "holds no mnist", "name the folder")


def test_images_and_labels_of_mnist_are_not_taken_for_each_other(tmp_path: Path) -> None:
    mnist(tmp_path / "m")
    shutil.copy(tmp_path / "m" / "t10k-images-idx3-ubyte", tmp_path / "m" / "t10k-labels-idx1-ubyte")
    refused("mnist", tmp_path / "m", "t10k-labels-idx1-ubyte", "begins with 00000803")


def test_a_file_of_svhn_that_ends_early_is_named_wherever_it_ends(tmp_path: Path) -> None:
    svhn(tmp_path / "s")
    file = tmp_path / "s" / "train_32x32.mat"
    content = file.read_bytes()
    for end in (0, 100, 127, 128, 130, 500, len(content) - 1):
        file.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"train_32x32\.mat: .*; download it again"):
            materialize_arrays("svhn", tmp_path / "s")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (None, "truncated or no MATLAB file"),
        ({"X": np.zeros((32, 32, 3, 4)), "y": np.ones((4, 1), np.uint8)}, "its X is no uint8 array"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.zeros((4, 1), np.uint8)}, "its y is no column of labels"),
        ({"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((3, 1), np.uint8)}, "4 images and 3 labels"),
        ({"y": np.ones((3, 1), np.uint8)}, "its X is no uint8 array"),
    ],
)
def test_a_broken_file_of_svhn_is_named(tmp_path: Path, table: dict[str, np.ndarray] | None, words: str) -> None:
    svhn(tmp_path / "s")
    file = tmp_path / "s" / "train_32x32.mat"
    if table is None:
        file.write_bytes(file.read_bytes()[:3000])
    else:
        savemat(file, table)
    with pytest.raises(DataError, match=f"train_32x32.mat: {words}"):
        materialize_arrays("svhn", tmp_path / "s")

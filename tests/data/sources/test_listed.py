"""Tiny-ImageNet and ImageNet on a few small images in the published forms."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fastaug.data.build import find_index, find_root
from fastaug.data.index import Folder, Index
from fastaug.data.packed.index import PackedIndex
from fastaug.data.sources.published import PUBLISHED, Published
from fastaug.errors import DataError

WNIDS = ["n01440764", "n01443537", "n02085620"]
NUMBERS = [2, 3, 1]  # ILSVRC's number of each, in another order
TRUTH = [1, 3, 3, 2, 1, 2]  # of the validation images


def picture(value: int) -> bytes:
    """A JPEG image that is nothing but one level of grey."""
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def opened(root: str, verify: bool = False) -> Index:
    return find_index(find_root(root, progress=False, verify=verify), "ignore", progress=False)


def refused(root: str, verify: bool = False) -> str:
    with pytest.raises(DataError) as error:
        opened(root, verify)
    return str(error.value)


def seen(index: Index) -> list[tuple[str, int, int]]:
    """(class, level, Folder) of every image, sorted."""
    found = []
    for id in range(len(index)):
        raw = (
            index.encoded(id).tobytes()
            if isinstance(index, PackedIndex)
            else Path(index.path(id).decode()).read_bytes()
        )
        level = int(np.asarray(Image.open(io.BytesIO(raw)))[0, 0, 0])
        found.append((index.classes[index.labels[id]], level, int(index.folders[id])))
    return sorted(found)


# --- Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    write(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in reversed(WNIDS)))
    words = "n00001740\tentity\nn01440764\ttench, Tinca tinca\nn01443537\tcrane\nn02085620\tcrane, bird\n"
    write(root / "words.txt", words)
    for label, wnid in enumerate(WNIDS):
        write(root / "train" / wnid / f"{wnid}_boxes.txt", "")
        for number in range(2):
            write(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", picture(40 * label + 10 * number))
    lines = []
    for number in range(4):
        write(root / "val" / "images" / f"val_{number}.JPEG", picture(200 + 10 * number))
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t0\t63\t63\n")
    write(root / "val" / "val_annotations.txt", "".join(lines))
    write(root / "test" / "images" / "test_0.JPEG", picture(0))
    return root


NAMES = ["tench", "crane (n01443537)", "crane (n02085620)"]


def test_tiny_imagenet(tiny: Path) -> None:
    index = opened(f"tiny_imagenet:{tiny}")
    expected = [(NAMES[label], 40 * label + 10 * number, Folder.TRAIN) for label in range(3) for number in range(2)]
    expected += [(NAMES[number % 3], 200 + 10 * number, Folder.TEST) for number in range(4)]
    assert seen(index) == sorted(expected)
    again = opened(f"tiny_imagenet:{tiny}")
    assert again.paths.blob == index.paths.blob


def test_tiny_imagenet_is_counted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has 6 training and 4 test images, published are 100,000 and 10,000" in refused(
        f"tiny_imagenet:{tiny}", True
    )
    monkeypatch.setitem(PUBLISHED, "tiny_imagenet", Published(6, 4, PUBLISHED["tiny_imagenet"].files))
    assert len(opened(f"tiny_imagenet:{tiny}", True)) == 10


def test_tiny_imagenet_that_is_not_whole(tiny: Path) -> None:
    root = f"tiny_imagenet:{tiny}"
    assert "248,100,043 bytes, MD5 90528d7ca1a48142e341f4ef8d21d0de" in refused(f"{root}/train")
    (tiny / "val" / "images" / "val_1.JPEG").unlink()
    assert "differ in 1 images: val_1.JPEG" in refused(root)
    shutil.rmtree(tiny / "train" / WNIDS[1])
    assert f"lacks {WNIDS[1]} of wnids.txt" in refused(root)
    write(tiny / "words.txt", "n01440764\ttench\n")
    assert f"no words for {WNIDS[1]}, {WNIDS[2]}" in refused(root)


# --- ImageNet


def devkit_files(prefix: str = "") -> dict[str, bytes]:
    out = io.BytesIO()
    rows = [(number, wnid, "words") for number, wnid in zip(NUMBERS, WNIDS, strict=True)] + [(9, "n00000009", "above")]
    table = np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    savemat(out, {"synsets": table})
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    return {f"{prefix}meta.mat": out.getvalue(), f"{prefix}ILSVRC2012_validation_ground_truth.txt": truth}


def train_files(wnid: str) -> dict[str, bytes]:
    label = WNIDS.index(wnid)
    return {f"{wnid}_{number}.JPEG": picture(40 * label + 10 * number) for number in range(2)}


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number + 1:08d}.JPEG": picture(200 + 8 * number) for number in range(len(TRUTH))}


def train_folder(root: Path) -> None:
    for wnid in WNIDS:
        for name, content in train_files(wnid).items():
            write(root / "train" / wnid / name, content)


def train_tar(root: Path) -> None:
    write(root / "ILSVRC2012_img_train.tar", tar({f"{wnid}.tar": tar(train_files(wnid)) for wnid in WNIDS}))


def val_sorted(root: Path) -> None:
    for number, content in enumerate(val_files().values()):
        write(root / "val" / WNIDS[NUMBERS.index(TRUTH[number])] / f"{number}.JPEG", content)


def val_flat(root: Path) -> None:
    for name, content in val_files().items():
        write(root / "val" / name, content)


def val_tar(root: Path) -> None:
    write(root / "ILSVRC2012_img_val.tar", tar(val_files()))


def devkit_folder(root: Path) -> None:
    for name, content in devkit_files().items():
        write(root / "ILSVRC2012_devkit_t12" / "data" / name, content)


def devkit_archive(root: Path) -> None:
    write(root / "ILSVRC2012_devkit_t12.tar.gz", tar(devkit_files("ILSVRC2012_devkit_t12/data/"), "w:gz"))


def synsets(root: Path) -> None:
    lines = "".join(f"{WNIDS[NUMBERS.index(number)]}\n" for number in TRUTH)
    write(root / "imagenet_2012_validation_synset_labels.txt", lines)


EXPECTED = sorted(
    [(WNIDS[label], 40 * label + 10 * number, int(Folder.TRAIN)) for label in range(3) for number in range(2)]
    + [(WNIDS[NUMBERS.index(truth)], 200 + 8 * number, int(Folder.TEST)) for number, truth in enumerate(TRUTH)]
)


@pytest.mark.parametrize(
    "parts",
    [
        (train_folder, val_sorted),
        (train_folder, val_flat, devkit_folder),
        (train_tar, val_tar, devkit_archive),
        (train_tar, val_flat, synsets),
        (train_folder, val_tar, devkit_folder),
    ],
)
def test_imagenet(tmp_path: Path, parts: tuple[Callable[[Path], None], ...]) -> None:
    for part in parts:
        part(tmp_path)
    index = opened(f"imagenet:{tmp_path}")
    assert index.classes == tuple(WNIDS)
    assert seen(index) == EXPECTED
    assert not index.reasons


def test_imagenet_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tar(tmp_path)
    val_flat(tmp_path)
    synsets(tmp_path)
    root = f"imagenet:{tmp_path}"
    assert "ILSVRC2012_img_train.tar: 40,960 bytes, published are 147,897,477,120: half-downloaded" in refused(
        root, True
    )
    size = (tmp_path / "ILSVRC2012_img_train.tar").stat().st_size
    files = PUBLISHED["imagenet"].files
    monkeypatch.setitem(files, "ILSVRC2012_img_train.tar", files["ILSVRC2012_img_train.tar"]._replace(bytes=size))
    assert "1,281,167 training and 6 test images, published are 1,281,167 and 50,000" in refused(root, True)
    monkeypatch.setitem(PUBLISHED, "imagenet", Published(6, 6, files))
    assert len(opened(root, True)) == 12


def test_imagenet_that_is_not_whole(tmp_path: Path) -> None:
    root = f"imagenet:{tmp_path}"
    text = refused(root)
    assert "train/ or ILSVRC2012_img_train.tar (147,897,477,120 bytes, MD5 1d675b47d978889d74fa0da5fadfb00e)" in text
    assert "and ILSVRC2012_devkit_t12.tar.gz (MD5 fa75699e90414af021442c21a62c3abf)" in text
    train_tar(tmp_path)
    val_tar(tmp_path)
    assert "put there ILSVRC2012_devkit_t12.tar.gz as published, or imagenet_2012_validation" in refused(root)
    write(tmp_path / "ILSVRC2012_validation_ground_truth.txt", "1\n")
    assert "meta.mat is missing" in refused(root)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").unlink()
    write(tmp_path / "imagenet_2012_validation_synset_labels.txt", "n01440764\n")
    assert "ILSVRC2012_val_00000002.JPEG has no number from 1 to 1" in refused(root)
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").unlink()
    devkit_archive(tmp_path)
    archive = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    archive.write_bytes(archive.read_bytes()[:200])
    assert "ILSVRC2012_devkit_t12.tar.gz is broken" in refused(root)
    devkit_archive(tmp_path)
    whole = (tmp_path / "ILSVRC2012_img_train.tar").read_bytes()
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(whole[: len(whole) // 2])
    assert "ILSVRC2012_img_train.tar" in refused(root)
    (tmp_path / "train").mkdir()
    assert "holds no folders named by WordNet ids" in refused(root)

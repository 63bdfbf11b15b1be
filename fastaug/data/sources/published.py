"""What published sets are made of: numbers of images, and the files with their sizes and MD5 as given by publishers.

A set that differs is refused, so that half a download never passes for the whole; `data.verify=false` takes it so.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastaug.errors import DataError

ANYWAY = "to use it as it is, a part or another set in its form, set data.verify=false"


class File(NamedTuple):
    """A file's bytes, 0 where not known, and its MD5; `same`: those of other sets under the same names."""

    bytes: int
    md5: str
    same: tuple[str, ...] = ()

    def __str__(self) -> str:
        size = f"{self.bytes:,} bytes" if self.bytes else ""
        return ", ".join(text for text in (size, f"MD5 {self.md5}") if text)


class Published(NamedTuple):
    """A published set: its images for training and test, and its files by name."""

    train: int
    test: int
    files: dict[str, File]


def _mnist(md5: str, fashion: str, kmnist: str) -> File:
    return File(0, md5, (fashion, kmnist))


PUBLISHED = {
    "cifar10": Published(
        50_000,
        10_000,
        {
            "cifar-10-python.tar.gz": File(170_498_071, "c58f30108f718f92721af3b95e74349a"),
            "cifar-10-binary.tar.gz": File(170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
            "data_batch_1": File(0, "c99cafc152244af753f735de768cd75f"),
            "data_batch_2": File(0, "d4bba439e000b95fd0a9bffe97cbabec"),
            "data_batch_3": File(0, "54ebc095f3ab1f0389bbae665268c751"),
            "data_batch_4": File(0, "634d18415352ddfa80567beed471001a"),
            "data_batch_5": File(0, "482c414d41f54cd18b22e5b47cb7c3cb"),
            "test_batch": File(0, "40351d587109b95175f43aff81a1287e"),
            "batches.meta": File(0, "5ff9c542aee3614f3951f8cda6e48888"),
        },
    ),
    "cifar100": Published(
        50_000,
        10_000,
        {
            "cifar-100-python.tar.gz": File(169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
            "cifar-100-binary.tar.gz": File(168_513_733, "03b5dce01913d631647c71ecec9e9cb8"),
            "train": File(0, "16019d7e3df5f24257cddd939b257f8d"),
            "test": File(0, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            "meta": File(0, "7973b15100ade9c7d40fb424638fde48"),
        },
    ),
    "mnist": Published(
        60_000,
        10_000,
        {
            "train-images-idx3-ubyte.gz": _mnist(
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "bdb82020997e1d708af4cf47b453dcf7",
            ),
            "train-labels-idx1-ubyte.gz": _mnist(
                "d53e105ee54ea40749a09fcbcd1e9432",
                "25c81989df183df01b3e8a0aad5dffbe",
                "e144d726b3acfaa3e44228e80efcd344",
            ),
            "t10k-images-idx3-ubyte.gz": _mnist(
                "9fb629c4189551a2d022fa330f9573f3",
                "bef4ecab320f06d8554ea6380940ec79",
                "5c965bf0a639b31b8f53240b1b52f4d7",
            ),
            "t10k-labels-idx1-ubyte.gz": _mnist(
                "ec29112dd5afa0611ce80d1b7f02629c",
                "bb300cfdad3c16e7a12a480ee83cd310",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
        },
    ),
    "svhn": Published(
        73_257,
        26_032,
        {
            "train_32x32.mat": File(182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373"),
            "test_32x32.mat": File(64_275_384, "eb5a983be6a315427106f1b164d9cef3"),
        },
    ),
    "tiny_imagenet": Published(
        100_000, 10_000, {"tiny-imagenet-200.zip": File(248_100_043, "90528d7ca1a48142e341f4ef8d21d0de")}
    ),
    "imagenet": Published(
        1_281_167,
        50_000,
        {
            "ILSVRC2012_img_train.tar": File(147_897_477_120, "1d675b47d978889d74fa0da5fadfb00e"),
            "ILSVRC2012_img_val.tar": File(6_744_924_160, "29b22e2961454d5413ddabcf34fc5622"),
            "ILSVRC2012_devkit_t12.tar.gz": File(0, "fa75699e90414af021442c21a62c3abf"),
        },
    ),
}


def listed(kind: str, names: Iterable[str]) -> str:
    """Files of a set as messages name them, with size and MD5 where they are published."""
    files = PUBLISHED[kind].files
    return ", ".join(f"{name} ({files[name]})" if name in files else name for name in names)


def refuse_other_files(kind: str, paths: Iterable[Path], *, digests: bool = True) -> None:
    """DataError for a file of another size than published, or, with `digests`, of another MD5: every byte is read."""
    for path in paths:
        known = PUBLISHED[kind].files.get(path.name, File(0, ""))
        try:
            size = path.stat().st_size
            if known.bytes and size != known.bytes:
                short = "half-downloaded" if size < known.bytes else "another file"
                text = f"data.root: {path}: {size:,} bytes, published are {known.bytes:,}: {short}"
                raise DataError(f"{text}; download it again; {ANYWAY}")
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest() if known.md5 and digests else known.md5
        except OSError as error:
            raise DataError(f"data.root: {path} cannot be read ({error.strerror}); repair it") from error
        if found not in (known.md5, *known.same):
            text = f"data.root: {path}: MD5 {found} ({size:,} bytes), published is {known.md5}"
            raise DataError(f"{text}: half-downloaded or altered; download it again; {ANYWAY}")


def refuse_other_counts(kind: str, place: Path, train: int, test: int) -> None:
    """DataError unless a set has as many images as were published."""
    known = PUBLISHED[kind]
    if (train, test) != (known.train, known.test):
        text = f"data.root: {kind}:{place} has {train:,} training and {test:,} test images"
        raise DataError(f"{text}, published are {known.train:,} and {known.test:,}; download it again; {ANYWAY}")
